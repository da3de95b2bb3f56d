/* See cuda_runtime_api.h. */
#pragma once
#include "cuda_runtime_api.h"
#define CUDA_VERSION CUDART_VERSION
typedef int CUresult;
typedef unsigned long long CUdeviceptr;
