/* libnvrtc: programs that compile to nothing; names are their own mangled names. */
#include "mirage.h"
#include <string.h>

EXPORT int nvrtcVersion(int *major, int *minor) {
  *major = mirage_device()->cuda / 1000;
  *minor = mirage_device()->cuda % 1000 / 10;
  return OK;
}
EXPORT const char *nvrtcGetErrorString(int error) { return error ? "NVRTC_ERROR" : "NVRTC_SUCCESS"; }
EXPORT int nvrtcCreateProgram(void **out) {
  *out = (void *)mirage_handle();
  return OK;
}
static int one(size_t *out) {
  *out = 1;
  return OK;
}
static int empty(char *out) {
  *out = 0;
  return OK;
}
EXPORT int nvrtcGetPTXSize(void *program, size_t *out) { return (void)program, one(out); }
EXPORT int nvrtcGetCUBINSize(void *program, size_t *out) { return (void)program, one(out); }
EXPORT int nvrtcGetProgramLogSize(void *program, size_t *out) { return (void)program, one(out); }
EXPORT int nvrtcGetPTX(void *program, char *out) { return (void)program, empty(out); }
EXPORT int nvrtcGetCUBIN(void *program, char *out) { return (void)program, empty(out); }
EXPORT int nvrtcGetProgramLog(void *program, char *out) { return (void)program, empty(out); }
EXPORT int nvrtcGetLoweredName(void *program, const char *name, const char **out) {
  (void)program;
  *out = name;
  return OK;
}
EXPORT int nvrtcGetNumSupportedArchs(int *out) {
  *out = 1;
  return OK;
}
EXPORT int nvrtcGetSupportedArchs(int *out) {
  *out = 10 * mirage_device()->major + mirage_device()->minor;
  return OK;
}
