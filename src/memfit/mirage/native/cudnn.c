/* libcudnn: descriptors of the graph interface that remember their attributes, one engine for every operation, and no
 * workspace (what the real library would take is not known). */
#include "mirage.h"
#include <stdlib.h>
#include <string.h>

enum {
  HEURISTICS_RESULTS = 202,
  CONFIGURATION_ENGINE = 300,
  CONFIGURATION_WORKSPACE = 303,
  CONFIGURATION_SHARED_MEMORY = 304,
  PLAN_WORKSPACE = 402,
  ENGINE_INDEX = 1301,
};
typedef struct attribute {
  struct attribute *next;
  int name, type;
  int64_t count;
  void *values;
} attribute;
typedef struct {
  int kind;
  attribute *attributes;
} descriptor;

EXPORT size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
EXPORT int cudnnGetProperty(int which, int *out) { /* major, minor, patch */
  *out = which == 0 ? CUDNN_VERSION / 10000 : which == 1 ? CUDNN_VERSION / 100 % 100 : CUDNN_VERSION % 100;
  return OK;
}
EXPORT size_t cudnnGetCudartVersion(void) { return (size_t)mirage_device()->cuda; }
EXPORT const char *cudnnGetErrorString(int error) { return error ? "CUDNN_STATUS_NOT_SUPPORTED" : "CUDNN_STATUS_SUCCESS"; }
EXPORT void cudnnGetLastErrorString(char *out, size_t size) {
  if (size) *out = 0;
}
EXPORT int cudnnCreate(void **out) {
  *out = (void *)mirage_handle();
  return OK;
}

static size_t width(int type) { /* of an attribute's element, by the public numbering of attribute types */
  static const unsigned char bytes[] = {8, 4, 1, 8, 4, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4, 8, 4, 4, 4, 4, 4, 4, 4, 4, 1, 4, 16, 4, 4, 4};
  return type >= 0 && type < (int)sizeof bytes ? bytes[type] : 8;
}
EXPORT int cudnnBackendCreateDescriptor(int kind, descriptor **out) {
  if (!(*out = calloc(1, sizeof **out))) return 1;
  (*out)->kind = kind;
  return OK;
}
EXPORT int cudnnBackendDestroyDescriptor(descriptor *d) {
  if (!d) return OK;
  while (d->attributes) {
    attribute *a = d->attributes;
    d->attributes = a->next;
    free(a->values);
    free(a);
  }
  free(d);
  return OK;
}
static attribute *find(descriptor *d, int name) {
  attribute *a = d->attributes;
  while (a && a->name != name) a = a->next;
  return a;
}
EXPORT int cudnnBackendSetAttribute(descriptor *d, int name, int type, int64_t count, const void *values) {
  attribute *a = find(d, name);
  void *copy = malloc((size_t)count * width(type) + 1);
  if (!copy || (!a && !(a = calloc(1, sizeof *a)))) return 1;
  if (count > 0 && values) memcpy(copy, values, (size_t)count * width(type));
  if (!a->name) {
    a->next = d->attributes;
    d->attributes = a;
  }
  free(a->values);
  a->name = name;
  a->type = type;
  a->count = count;
  a->values = copy;
  return OK;
}
EXPORT int cudnnBackendFinalize(descriptor *d) {
  (void)d;
  return OK;
}
EXPORT int cudnnBackendGetAttribute(descriptor *d, int name, int type, int64_t wanted, int64_t *count, void *out) {
  attribute *a = find(d, name);
  int64_t given = 0;
  if (a) {
    given = a->count;
    if (out && wanted > 0) memcpy(out, a->values, (size_t)(wanted < given ? wanted : given) * width(type));
  } else if (name == HEURISTICS_RESULTS || name == CONFIGURATION_ENGINE) {
    given = 1; /* the caller brings a descriptor, which stays as it is */
  } else if (name == PLAN_WORKSPACE || name == CONFIGURATION_WORKSPACE || name == CONFIGURATION_SHARED_MEMORY ||
             name == ENGINE_INDEX) {
    given = 1;
    if (out && wanted > 0) memset(out, 0, width(type));
  }
  if (count) *count = given;
  return OK;
}
EXPORT int cudnnBackendExecute(void *handle, descriptor *plan, descriptor *variant) {
  (void)handle, (void)plan, (void)variant;
  mirage_work();
  return OK;
}
