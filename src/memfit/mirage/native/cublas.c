/* libcublas: handles that differ from each other, as PyTorch keeps a workspace for each. */
#include "mirage.h"

EXPORT int cublasCreate_v2(void **out) {
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cublasGetVersion_v2(void *handle, int *out) {
  (void)handle;
  *out = mirage_device()->cuda / 1000 * 10000 + mirage_device()->cuda % 1000 * 10;
  return OK;
}
EXPORT int cublasGetPointerMode_v2(void *handle, int *out) {
  (void)handle;
  *out = 0;
  return OK;
}
EXPORT int cublasGetMathMode(void *handle, int *out) { return cublasGetPointerMode_v2(handle, out); }
EXPORT int cublasGetAtomicsMode(void *handle, int *out) { return cublasGetPointerMode_v2(handle, out); }
EXPORT int cublasGetSmCountTarget(void *handle, int *out) { return cublasGetPointerMode_v2(handle, out); }
EXPORT int cublasGetStream_v2(void *handle, void **out) {
  (void)handle;
  *out = NULL;
  return OK;
}
