/* libcublasLt: one algorithm for every product, which needs no workspace of its own. */
#include "mirage.h"
#include <string.h>

EXPORT int cublasLtCreate(void **out) {
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT size_t cublasLtGetVersion(void) { return (size_t)(mirage_device()->cuda / 1000 * 10000); }
EXPORT size_t cublasLtGetCudartVersion(void) { return (size_t)mirage_device()->cuda; }
typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} heuristic;
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *what, void *a, void *b, void *c, void *d, void *preference,
                                          int wanted, heuristic *out, int *found) {
  (void)handle, (void)what, (void)a, (void)b, (void)c, (void)d, (void)preference;
  if (wanted > 0) memset(out, 0, sizeof *out);
  *found = wanted > 0;
  return OK;
}
