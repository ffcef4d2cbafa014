#include "engine.h"

namespace dropkit {
extern const Table kScalar = table<scalar::Isa>("scalar", [] { return true; });
}
