/* Safetensors files: an 8-byte length, a JSON table of tensors, their bytes. Private to experts/.
 */
#ifndef SWITCHYARD_EXPERTS_SAFETENSORS_H
#define SWITCHYARD_EXPERTS_SAFETENSORS_H

#include "base/base.h"

#define SAFETENSORS_HEADER_BYTES_MAX ((size_t)100 << 20) /* the limit of the format's own readers  \
                                                          */
#define SAFETENSORS_TENSORS_MAX 65536u
#define SAFETENSORS_DIMS 8

enum safetensors_type {
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_OTHER, /* known, but no weight of ours: integers, bool, f64, f8 */
};

struct safetensors_tensor {
    char *name;
    enum safetensors_type type;
    uint32_t dims;
    uint64_t dim[SAFETENSORS_DIMS]; /* row-major, the last one is contiguous */
    uint64_t elems;
    uint64_t offset, bytes; /* in the file */
};

/* Trusts nothing: the table's length, every type, shape, product and offset is checked against the
 * file's size; tensors may not overlap and no byte may belong to none. Immutable; any thread. */
struct safetensors;
enum err_code safetensors_open(const char *path, struct safetensors **ret,
                               struct err *e) BASE_NODISCARD;
void safetensors_close(struct safetensors **s);
const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name);
/* The tensor's elements as f32 into dst [elems]; ERR_UNSUPPORTED for SAFETENSORS_OTHER. */
enum err_code safetensors_read(const struct safetensors *s, const struct safetensors_tensor *t,
                               float *dst, struct err *e) BASE_NODISCARD;

#endif
