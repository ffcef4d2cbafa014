#include "engine.h"
#include "fields.h"

namespace dropkit {
extern const Table kScalar = table<scalar::Isa>("scalar", [] { return true; }, fields<scalar::Isa>());
}
