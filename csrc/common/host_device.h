// For small functions that the CPU's and the GPU's kernels share.
#pragma once

#ifdef __CUDACC__
#define ATLAS_HOST_DEVICE __host__ __device__
#else
#define ATLAS_HOST_DEVICE
#endif
