#include "engine.h"
#include "fields.h"
#include "neon.h"

namespace dropkit {
extern const Table kNeon = table<neon::Isa>("neon", [] { return true; }, fields<neon::Isa>());
}
