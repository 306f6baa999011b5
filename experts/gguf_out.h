/* A GGUF file being written: header, tensor data in order, a rename at the end. Private to
 * experts/. */
#ifndef SWITCHYARD_EXPERTS_GGUF_OUT_H
#define SWITCHYARD_EXPERTS_GGUF_OUT_H

#include "base/base.h"

struct gguf_out {
    FILE *f;
    char *path, *tmp_path;
    uint64_t at;         /* bytes written so far */
    uint64_t data_start; /* of the data section */
};
/* Writes to path.tmp.PID beside `path`; nothing appears under `path` before gguf_out_commit. */
enum err_code gguf_out_open(struct gguf_out *o, const char *path, struct err *e) BASE_NODISCARD;
enum err_code gguf_out_write(struct gguf_out *o, const void *data, size_t len,
                             struct err *e) BASE_NODISCARD;
/* Zeros up to the absolute position, which must not lie behind. */
enum err_code gguf_out_pad(struct gguf_out *o, uint64_t position, struct err *e) BASE_NODISCARD;
/* Header and the zeros behind it; tensor offsets count from here on. */
enum err_code gguf_out_header(struct gguf_out *o, const void *header, size_t len,
                              uint64_t alignment, struct err *e) BASE_NODISCARD;
enum err_code gguf_out_commit(struct gguf_out *o, struct err *e) BASE_NODISCARD;
void gguf_out_abort(struct gguf_out *o); /* no-op after a commit */

#endif
