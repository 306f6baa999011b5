/* Typed access to GGUF metadata. Values lie unaligned in the header: every read is a memcpy. */
#include "experts/gguf.h"

#include <stdlib.h>
#include <string.h>

bool gguf_str_is(struct gguf_str s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

const void *gguf_header(const struct gguf *g, size_t *ret_len)
{
    *ret_len = g->header_len;
    return g->header;
}

size_t gguf_tensors(const struct gguf *g)
{
    return g->tensors_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t tensor_idx)
{
    return tensor_idx < g->tensors_count ? &g->tensors[tensor_idx] : NULL;
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return gguf_find_kv(g, key, strlen(key)) != NULL;
}

static const struct gguf_kv *get_kv(const struct gguf *g, const char *key, struct err *e)
{
    const struct gguf_kv *kv = gguf_find_kv(g, key, strlen(key));
    if (!kv)
        err_set(e, ERR_NOT_FOUND, "%s: key '%s' is missing", g->label, key);
    return kv;
}

static enum err_code wrong_kind(const struct gguf *g, const char *key, const struct gguf_kv *kv,
                                const char *wanted, struct err *e)
{
    if (kv->kind == GGUF_ARRAY)
        return err_set(e, ERR_CORRUPT, "%s: key '%s' is an array of %s, not %s", g->label, key,
                       gguf_kind_name(kv->elem), wanted);
    return err_set(e, ERR_CORRUPT, "%s: key '%s' is of type %s, not %s", g->label, key,
                   gguf_kind_name(kv->kind), wanted);
}

/* Any integer kind as its value and its sign; false for other kinds. */
static bool load_int(const struct gguf_kv *kv, uint64_t *ret, bool *ret_negative)
{
    uint64_t u = 0;
    int64_t i = 0;
    int8_t i8;
    int16_t i16;
    int32_t i32;
    switch (kv->kind) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
        memcpy(&u, kv->value, gguf_kind_bytes(kv->kind));
        *ret = u;
        *ret_negative = false;
        return true;
    case GGUF_I8:
        memcpy(&i8, kv->value, sizeof(i8));
        i = i8;
        break;
    case GGUF_I16:
        memcpy(&i16, kv->value, sizeof(i16));
        i = i16;
        break;
    case GGUF_I32:
        memcpy(&i32, kv->value, sizeof(i32));
        i = i32;
        break;
    case GGUF_I64:
        memcpy(&i, kv->value, sizeof(i));
        break;
    default:
        return false;
    }
    *ret = (uint64_t)i;
    *ret_negative = i < 0;
    return true;
}

enum err_code gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct err *e)
{
    const struct gguf_kv *kv = get_kv(g, key, e);
    if (!kv)
        return ERR_NOT_FOUND;
    uint64_t v;
    bool negative;
    if (!load_int(kv, &v, &negative))
        return wrong_kind(g, key, kv, "an integer", e);
    if (negative)
        return err_set(e, ERR_CORRUPT, "%s: key '%s' is %lld; it cannot be negative", g->label, key,
                       (long long)(int64_t)v);
    *ret = v;
    return ERR_OK;
}

enum err_code gguf_get_f64(const struct gguf *g, const char *key, double *ret, struct err *e)
{
    const struct gguf_kv *kv = get_kv(g, key, e);
    if (!kv)
        return ERR_NOT_FOUND;
    uint64_t v;
    bool negative;
    float f;
    if (kv->kind == GGUF_F32) {
        memcpy(&f, kv->value, sizeof(f));
        *ret = (double)f;
    } else if (kv->kind == GGUF_F64) {
        memcpy(ret, kv->value, sizeof(*ret));
    } else if (load_int(kv, &v, &negative)) {
        *ret = negative ? (double)(int64_t)v : (double)v;
    } else {
        return wrong_kind(g, key, kv, "a number", e);
    }
    return ERR_OK;
}

enum err_code gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *e)
{
    const struct gguf_kv *kv = get_kv(g, key, e);
    if (!kv)
        return ERR_NOT_FOUND;
    if (kv->kind != GGUF_BOOL)
        return wrong_kind(g, key, kv, "a bool", e);
    if (kv->value[0] > 1)
        return err_set(e, ERR_CORRUPT, "%s: key '%s' is a bool of %u", g->label, key, kv->value[0]);
    *ret = kv->value[0] != 0;
    return ERR_OK;
}

enum err_code gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *ret,
                           struct err *e)
{
    const struct gguf_kv *kv = get_kv(g, key, e);
    if (!kv)
        return ERR_NOT_FOUND;
    if (kv->kind != GGUF_STR)
        return wrong_kind(g, key, kv, "a string", e);
    ret->data = (const char *)kv->value;
    ret->len = kv->value_len;
    return ERR_OK;
}

static const struct gguf_kv *get_array(const struct gguf *g, const char *key, enum err_code *rc,
                                       struct err *e)
{
    const struct gguf_kv *kv = get_kv(g, key, e);
    *rc = kv ? ERR_OK : ERR_NOT_FOUND;
    if (kv && kv->kind != GGUF_ARRAY) {
        *rc = wrong_kind(g, key, kv, "an array", e);
        return NULL;
    }
    return kv;
}

enum err_code gguf_get_array(const struct gguf *g, const char *key, size_t *ret_count,
                             struct err *e)
{
    enum err_code rc;
    const struct gguf_kv *kv = get_array(g, key, &rc, e);
    if (kv)
        *ret_count = (size_t)kv->count;
    return rc;
}

static const struct gguf_kv *get_str_array(const struct gguf *g, const char *key, enum err_code *rc,
                                           struct err *e)
{
    const struct gguf_kv *kv = get_array(g, key, rc, e);
    if (kv && kv->elem != GGUF_STR) {
        *rc = wrong_kind(g, key, kv, "an array of strings", e);
        return NULL;
    }
    return kv;
}

/* The string at `p`, and where the next one starts. Lengths were checked when the header was
 * parsed. */
static const uint8_t *load_str(const uint8_t *p, struct gguf_str *ret)
{
    uint64_t n;
    memcpy(&n, p, sizeof(n));
    ret->data = (const char *)p + sizeof(n);
    ret->len = (size_t)n;
    return p + sizeof(n) + n;
}

enum err_code gguf_array_str(const struct gguf *g, const char *key, size_t idx,
                             struct gguf_str *ret, struct err *e)
{
    enum err_code rc;
    const struct gguf_kv *kv = get_str_array(g, key, &rc, e);
    if (!kv)
        return rc;
    if (idx >= kv->count)
        return err_set(e, ERR_INVALID, "%s: key '%s' has no element %zu of %llu", g->label, key,
                       idx, (unsigned long long)kv->count);
    const uint8_t *p = kv->value + kv->stride[idx / GGUF_STR_STRIDE];
    for (size_t i = 0; i <= idx % GGUF_STR_STRIDE; i++)
        p = load_str(p, ret);
    return ERR_OK;
}

enum err_code gguf_array_strs(const struct gguf *g, const char *key, struct gguf_str **ret,
                              size_t *ret_count, struct err *e)
{
    enum err_code rc;
    const struct gguf_kv *kv = get_str_array(g, key, &rc, e);
    if (!kv)
        return rc;
    struct gguf_str *list = mem_array((size_t)kv->count, sizeof(*list));
    const uint8_t *p = kv->value;
    for (size_t i = 0; i < kv->count; i++)
        p = load_str(p, &list[i]);
    *ret = list;
    *ret_count = (size_t)kv->count;
    return ERR_OK;
}

static enum err_code get_numbers(const struct gguf *g, const char *key, enum gguf_kind a,
                                 enum gguf_kind b, const char *wanted, const void **ret,
                                 size_t *ret_count, struct err *e)
{
    enum err_code rc;
    const struct gguf_kv *kv = get_array(g, key, &rc, e);
    if (!kv)
        return rc;
    if (kv->elem != a && kv->elem != b)
        return wrong_kind(g, key, kv, wanted, e);
    *ret = kv->value;
    *ret_count = (size_t)kv->count;
    return ERR_OK;
}

enum err_code gguf_array_f32(const struct gguf *g, const char *key, const void **ret,
                             size_t *ret_count, struct err *e)
{
    return get_numbers(g, key, GGUF_F32, GGUF_F32, "an array of float32", ret, ret_count, e);
}

enum err_code gguf_array_i32(const struct gguf *g, const char *key, const void **ret,
                             size_t *ret_count, struct err *e)
{
    return get_numbers(g, key, GGUF_I32, GGUF_U32, "an array of int32", ret, ret_count, e);
}
