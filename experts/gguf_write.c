/* Building GGUF headers: for split sets that are joined and for merged experts. Version 3,
 * little-endian; the tensor data that follows is the caller's. */
#include "experts/gguf.h"

#include <string.h>

static void put_u32(struct buf *out, uint32_t v)
{
    buf_append(out, &v, sizeof(v));
}

static void put_u64(struct buf *out, uint64_t v)
{
    buf_append(out, &v, sizeof(v));
}

static void put_str(struct buf *out, const char *s)
{
    put_u64(out, strlen(s));
    buf_append(out, s, strlen(s));
}

void gguf_put_start(struct buf *out, uint64_t tensors, uint64_t keys)
{
    buf_append(out, "GGUF", 4);
    put_u32(out, 3);
    put_u64(out, tensors);
    put_u64(out, keys);
}

void gguf_put_kv(struct buf *out, const struct gguf_kv *kv)
{
    buf_append(out, kv->raw, kv->raw_len);
}

void gguf_put_kv_str(struct buf *out, const char *key, const char *value)
{
    put_str(out, key);
    put_u32(out, GGUF_STR);
    put_str(out, value);
}

void gguf_put_kv_u32(struct buf *out, const char *key, uint32_t value)
{
    put_str(out, key);
    put_u32(out, GGUF_U32);
    put_u32(out, value);
}

void gguf_put_tensor(struct buf *out, const struct gguf_tensor *t, enum rdu_type type,
                     uint64_t offset)
{
    put_str(out, t->name);
    put_u32(out, t->dims);
    for (uint32_t i = 0; i < t->dims; i++)
        put_u64(out, t->dim[i]);
    put_u32(out, (uint32_t)rdu_type_info(type)->gguf_id);
    put_u64(out, offset);
}
