// The CUDA library's source over the emulation, as a library with the interface of rib.h.
#include "rib_emulated.h"
