/* What the parts of libcudart share. */
#ifndef MEMFIT_CUDART_H
#define MEMFIT_CUDART_H
#include "mirage.h"

typedef struct {
  unsigned x, y, z;
} dim3;

int mirage_answer(int error); /* keeps an error for cudaGetLastError */
#define answer mirage_answer

/* libcuda.so.1 */
int mirage_driver_entry(const char *name, void **out);
int mirage_attribute(int *out, int attribute, int device);

#endif
