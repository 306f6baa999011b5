/* Reading safetensors. The table is JSON, so most of the work is to believe none of it: a file that
 * opens here can be read to its last tensor without another check. Bytes are read with pread, since
 * a file that shrinks under a mapping kills the process. */
#include "experts/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rdu/rdu.h"

struct safetensors {
    int fd;
    char *path;
    uint64_t data_at, file_bytes;
    struct safetensors_tensor *tensors; /* by offset */
    size_t count;
};

static const struct {
    const char *name;
    enum safetensors_type type;
    uint32_t bytes;
} dtypes[] = {
    {"F32", SAFETENSORS_F32, 4},       {"F16", SAFETENSORS_F16, 2},
    {"BF16", SAFETENSORS_BF16, 2},     {"F64", SAFETENSORS_OTHER, 8},
    {"I64", SAFETENSORS_OTHER, 8},     {"I32", SAFETENSORS_OTHER, 4},
    {"I16", SAFETENSORS_OTHER, 2},     {"I8", SAFETENSORS_OTHER, 1},
    {"U64", SAFETENSORS_OTHER, 8},     {"U32", SAFETENSORS_OTHER, 4},
    {"U16", SAFETENSORS_OTHER, 2},     {"U8", SAFETENSORS_OTHER, 1},
    {"BOOL", SAFETENSORS_OTHER, 1},    {"F8_E4M3", SAFETENSORS_OTHER, 1},
    {"F8_E5M2", SAFETENSORS_OTHER, 1},
};

static enum err_code refuse(const struct safetensors *s, const char *what, struct err *e)
{
    return err_set(e, ERR_CORRUPT, "'%.200s': %s; fetch the file again", s->path, what);
}

static enum err_code refuse_tensor(const struct safetensors *s, const char *name, const char *what,
                                   struct err *e)
{
    return err_set(e, ERR_CORRUPT, "'%.200s': tensor '%.80s': %s; fetch the file again", s->path,
                   name, what);
}

static enum err_code read_at(const struct safetensors *s, uint64_t at, void *dst, size_t len,
                             struct err *e)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(s->fd, (char *)dst + done, len - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, ERR_IO, "reading '%.200s'", s->path);
        if (n == 0)
            return refuse(s, "it ends before its data", e);
        done += (size_t)n;
    }
    return ERR_OK;
}

/* ---- the table ------------------------------------------------------------------------------- */

static enum err_code parse_type(const struct safetensors *s, const char *name, const json_t *v,
                                enum safetensors_type *ret_type, uint32_t *ret_bytes, struct err *e)
{
    const char *dtype = json_string_value(v);
    for (size_t i = 0; dtype != NULL && i < BASE_COUNT(dtypes); i++) {
        if (strcmp(dtype, dtypes[i].name) != 0)
            continue;
        *ret_type = dtypes[i].type;
        *ret_bytes = dtypes[i].bytes;
        return ERR_OK;
    }
    return refuse_tensor(s, name, "its dtype is unknown", e);
}

static enum err_code parse_shape(const struct safetensors *s, const json_t *v,
                                 struct safetensors_tensor *t, struct err *e)
{
    size_t elems = 1;
    if (!json_is_array(v) || json_array_size(v) > SAFETENSORS_DIMS)
        return refuse_tensor(s, t->name, "its shape is no list of at most 8 sizes", e);
    t->dims = (uint32_t)json_array_size(v);
    for (uint32_t i = 0; i < t->dims; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return refuse_tensor(s, t->name, "a size of its shape is no whole number", e);
        t->dim[i] = (uint64_t)json_integer_value(d);
        if (!size_mul(elems, (size_t)t->dim[i], &elems))
            return refuse_tensor(s, t->name, "its shape has too many elements", e);
    }
    t->elems = elems;
    return ERR_OK;
}

static enum err_code parse_offsets(const struct safetensors *s, const json_t *v,
                                   uint32_t elem_bytes, struct safetensors_tensor *t, struct err *e)
{
    const json_t *from = json_array_get(v, 0), *to = json_array_get(v, 1);
    size_t bytes;
    if (!json_is_array(v) || json_array_size(v) != 2 || !json_is_integer(from) ||
        !json_is_integer(to) || json_integer_value(from) < 0 ||
        json_integer_value(to) < json_integer_value(from))
        return refuse_tensor(s, t->name, "its data_offsets are no range", e);
    uint64_t begin = (uint64_t)json_integer_value(from), end = (uint64_t)json_integer_value(to);
    if (end > s->file_bytes - s->data_at)
        return refuse_tensor(s, t->name, "its data lie behind the end of the file", e);
    if (!size_mul((size_t)t->elems, elem_bytes, &bytes) || bytes != end - begin)
        return refuse_tensor(s, t->name, "its shape does not fit its data_offsets", e);
    t->offset = s->data_at + begin;
    t->bytes = bytes;
    return ERR_OK;
}

static enum err_code parse_tensor(const struct safetensors *s, const char *name, const json_t *v,
                                  struct safetensors_tensor *ret, struct err *e)
{
    uint32_t elem_bytes = 0;
    if (!json_is_object(v))
        return refuse_tensor(s, name, "it is no object", e);
    ret->name = mem_strdup(name);
    enum err_code code =
        parse_type(s, name, json_object_get(v, "dtype"), &ret->type, &elem_bytes, e);
    if (code == ERR_OK)
        code = parse_shape(s, json_object_get(v, "shape"), ret, e);
    if (code == ERR_OK)
        code = parse_offsets(s, json_object_get(v, "data_offsets"), elem_bytes, ret, e);
    return code;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Every byte of the data belongs to exactly one tensor. */
static enum err_code check_cover(const struct safetensors *s, struct err *e)
{
    uint64_t at = s->data_at;
    for (size_t i = 0; i < s->count; i++) {
        if (s->tensors[i].offset != at)
            return refuse_tensor(s, s->tensors[i].name, "its data overlap or leave a hole", e);
        at += s->tensors[i].bytes;
    }
    return at == s->file_bytes ? ERR_OK : refuse(s, "bytes at its end belong to no tensor", e);
}

static enum err_code parse_table(struct safetensors *s, const char *text, size_t len, struct err *e)
{
    json_error_t at;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at), *value;
    const char *name;
    enum err_code code = ERR_OK;
    if (!json_is_object(root))
        code = err_set(e, ERR_CORRUPT, "'%.200s': its table is no JSON object (%s)", s->path,
                       root ? "another value" : at.text);
    else if (json_object_size(root) > SAFETENSORS_TENSORS_MAX)
        code = refuse(s, "it has too many tensors", e);
    if (code == ERR_OK) {
        s->tensors = mem_array(json_object_size(root) + 1, sizeof(*s->tensors));
        json_object_foreach(root, name, value)
        {
            if (strcmp(name, "__metadata__") == 0 || code != ERR_OK)
                continue;
            code = parse_tensor(s, name, value, &s->tensors[s->count++], e);
        }
    }
    json_decref(root);
    if (code != ERR_OK)
        return code;
    qsort(s->tensors, s->count, sizeof(*s->tensors), compare_offsets);
    return check_cover(s, e);
}

static enum err_code read_table(struct safetensors *s, struct err *e)
{
    uint8_t raw[8];
    uint64_t len = 0;
    if (s->file_bytes < sizeof(raw))
        return refuse(s, "it is no safetensors file: shorter than its length field", e);
    enum err_code code = read_at(s, 0, raw, sizeof(raw), e);
    if (code != ERR_OK)
        return code;
    for (int i = 7; i >= 0; i--)
        len = len << 8 | raw[i];
    if (len < 2 || len > SAFETENSORS_HEADER_BYTES_MAX || len > s->file_bytes - sizeof(raw))
        return refuse(s, "the length of its table does not fit the file", e);
    char *text = mem_alloc((size_t)len + 1);
    s->data_at = sizeof(raw) + len;
    code = read_at(s, sizeof(raw), text, (size_t)len, e);
    if (code == ERR_OK)
        code = parse_table(s, text, (size_t)len, e);
    free(text);
    return code;
}

enum err_code safetensors_open(const char *path, struct safetensors **ret, struct err *e)
{
    struct stat st;
    struct safetensors *s = mem_alloc(sizeof(*s));
    s->path = mem_strdup(path);
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    enum err_code code = ERR_OK;
    if (s->fd < 0)
        code = err_set_errno(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "cannot open '%.200s'",
                             path);
    else if (fstat(s->fd, &st) != 0 || !S_ISREG(st.st_mode))
        code = err_set(e, ERR_INVALID, "'%.200s' is not a regular file", path);
    if (code == ERR_OK) {
        s->file_bytes = (uint64_t)st.st_size;
        code = read_table(s, e);
    }
    if (code != ERR_OK) {
        safetensors_close(&s);
        return code;
    }
    *ret = s;
    return ERR_OK;
}

void safetensors_close(struct safetensors **s)
{
    if (!*s)
        return;
    for (size_t i = 0; i < (*s)->count; i++)
        free((*s)->tensors[i].name);
    free((*s)->tensors);
    free((*s)->path);
    if ((*s)->fd >= 0)
        close((*s)->fd);
    free(*s);
    *s = NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->tensors[i].name, name) == 0)
            return &s->tensors[i];
    return NULL;
}

enum err_code safetensors_read(const struct safetensors *s, const struct safetensors_tensor *t,
                               float *dst, struct err *e)
{
    static const enum rdu_type rdu_types[] = {
        [SAFETENSORS_F32] = RDU_F32, [SAFETENSORS_F16] = RDU_F16, [SAFETENSORS_BF16] = RDU_BF16};
    if (t->type == SAFETENSORS_OTHER)
        return err_set(e, ERR_UNSUPPORTED, "'%.200s': tensor '%.80s' is not F32, F16 or BF16",
                       s->path, t->name);
    enum err_code code = ERR_OK;
    const size_t chunk = 65536;
    size_t elem_bytes = t->elems ? (size_t)(t->bytes / t->elems) : 4;
    void *raw = mem_array(chunk, elem_bytes);
    for (uint64_t at = 0; at < t->elems && code == ERR_OK; at += chunk) {
        size_t n = (size_t)BASE_MIN(t->elems - at, (uint64_t)chunk);
        code = read_at(s, t->offset + at * elem_bytes, raw, n * elem_bytes, e);
        if (code == ERR_OK)
            rdu_dequant_row(rdu_types[t->type], raw, dst + at, n);
    }
    free(raw);
    return code;
}
