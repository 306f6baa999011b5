/* Parsing a GGUF header (versions 2 and 3) from memory. The one rule: nothing that comes from the
 * file is used as a size, count or offset before it was compared with what is left of the file.
 * Reading past the bytes at hand but inside the file is not an error: the caller fetches more and
 * starts again, which is simpler than a resumable parser and costs little because the window grows
 * four times each round. */
#include "experts/gguf.h"

#include <stdlib.h>
#include <string.h>

static const char *const kind_names[GGUF_KINDS] = {
    "uint8", "int8",   "uint16", "int16",  "uint32", "int32",   "float32",
    "bool",  "string", "array",  "uint64", "int64",  "float64",
};
static const uint8_t kind_bytes[GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

const char *gguf_kind_name(uint32_t kind)
{
    return kind < GGUF_KINDS ? kind_names[kind] : "unknown";
}

size_t gguf_kind_bytes(enum gguf_kind kind)
{
    return kind_bytes[kind];
}

const char *gguf_show(const char *s, size_t len, char out[96])
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (n > 84) {
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x7f && c != '\\') {
            out[n++] = (char)c;
        } else {
            static const char hex[] = "0123456789abcdef";
            out[n++] = '\\';
            out[n++] = 'x';
            out[n++] = hex[c >> 4];
            out[n++] = hex[c & 15];
        }
    }
    out[n] = '\0';
    return out;
}

struct scan {
    const uint8_t *data;
    size_t len, pos;
    uint64_t file_bytes;
    size_t wanted; /* set when the file has the bytes but the window has not */
    const char *label;
    struct err *e;
    struct gguf *g;
};

static uint64_t scan_left(const struct scan *s)
{
    return s->file_bytes - s->pos;
}

/* `n` bytes at the cursor, which moves past them; NULL sets the error. */
static const uint8_t *scan_take(struct scan *s, uint64_t n, const char *what)
{
    if (n > scan_left(s)) {
        err_set(s->e, ERR_CORRUPT,
                "%s: the file ends inside %s: %llu bytes at offset %zu, of %llu in all", s->label,
                what, (unsigned long long)n, s->pos, (unsigned long long)s->file_bytes);
        return NULL;
    }
    if (n > s->len - s->pos) {
        uint64_t need = s->pos + n;
        if (need > GGUF_HEADER_BYTES_MAX) {
            err_set(s->e, ERR_UNSUPPORTED,
                    "%s: the header is longer than the limit of %llu bytes (%s)", s->label,
                    (unsigned long long)GGUF_HEADER_BYTES_MAX, what);
            return NULL;
        }
        s->wanted = (size_t)need;
        err_set(s->e, ERR_BUSY, "%s: more of the header is needed", s->label);
        return NULL;
    }
    const uint8_t *p = s->data + s->pos;
    s->pos += (size_t)n;
    return p;
}

static bool scan_u32(struct scan *s, uint32_t *ret, const char *what)
{
    const uint8_t *p = scan_take(s, sizeof(*ret), what);
    if (!p)
        return false;
    memcpy(ret, p, sizeof(*ret));
    return true;
}

static bool scan_u64(struct scan *s, uint64_t *ret, const char *what)
{
    const uint8_t *p = scan_take(s, sizeof(*ret), what);
    if (!p)
        return false;
    memcpy(ret, p, sizeof(*ret));
    return true;
}

static bool scan_fail(struct scan *s, enum err_code code, const char *fmt, ...) BASE_PRINTF(3, 4);
static bool scan_fail(struct scan *s, enum err_code code, const char *fmt, ...)
{
    char msg[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    err_set(s->e, code, "%s: %s", s->label, msg);
    return false;
}

/* ---- key-value records ---- */

static bool scan_value(struct scan *s, struct gguf_kv *kv, uint32_t kind, unsigned depth);

/* Strings of an array one by one; every 16th offset is noted if `kv` is given (top level only). */
static bool scan_strings(struct scan *s, struct gguf_kv *kv, uint64_t count)
{
    size_t start = s->pos;
    for (uint64_t i = 0; i < count; i++) {
        if (kv && i % GGUF_STR_STRIDE == 0)
            kv->stride[i / GGUF_STR_STRIDE] = (uint32_t)(s->pos - start);
        uint64_t n;
        if (!scan_u64(s, &n, "a string of an array") || !scan_take(s, n, "a string of an array"))
            return false;
    }
    return true;
}

static bool scan_array(struct scan *s, struct gguf_kv *kv, unsigned depth)
{
    char key[96];
    uint32_t elem;
    uint64_t count;
    if (!scan_u32(s, &elem, "an array's type") || !scan_u64(s, &count, "an array's length"))
        return false;
    gguf_show(kv->key, kv->key_len, key);
    if (elem >= GGUF_KINDS)
        return scan_fail(s, ERR_CORRUPT, "key '%s': unknown array element type %u", key, elem);
    if (depth >= GGUF_NESTING_MAX)
        return scan_fail(s, ERR_UNSUPPORTED, "key '%s': arrays nested deeper than %d", key,
                         GGUF_NESTING_MAX);
    /* An element takes at least this many bytes, so this bounds the work and the allocation below.
     */
    uint64_t each = elem == GGUF_STR ? 8 : elem == GGUF_ARRAY ? 12 : kind_bytes[elem];
    if (count > scan_left(s) / each)
        return scan_fail(s, ERR_CORRUPT,
                         "key '%s': an array of %llu %s values does not fit in the file", key,
                         (unsigned long long)count, kind_names[elem]);
    if (depth == 0) {
        kv->elem = (enum gguf_kind)elem;
        kv->count = count;
        kv->value = s->data + s->pos;
    }
    if (elem == GGUF_ARRAY) {
        for (uint64_t i = 0; i < count; i++)
            if (!scan_array(s, kv, depth + 1))
                return false;
        return true;
    }
    if (elem != GGUF_STR)
        return scan_take(s, count * each, "an array") != NULL;
    if (depth > 0)
        return scan_strings(s, NULL, count);
    /* The strings' own lengths take 8 bytes each: wait for at least those before allocating. */
    if (count * each > s->len - s->pos)
        return scan_take(s, count * each, "an array of strings") != NULL;
    kv->stride = mem_array((size_t)(count / GGUF_STR_STRIDE) + 1, sizeof(*kv->stride));
    return scan_strings(s, kv, count);
}

static bool scan_value(struct scan *s, struct gguf_kv *kv, uint32_t kind, unsigned depth)
{
    if (kind == GGUF_ARRAY)
        return scan_array(s, kv, depth);
    uint64_t n = kind_bytes[kind];
    if (kind == GGUF_STR && !scan_u64(s, &n, "a string's length"))
        return false;
    kv->value = scan_take(s, n, kind == GGUF_STR ? "a string" : "a value");
    return kv->value != NULL;
}

static bool scan_kv(struct scan *s, struct gguf_kv *kv)
{
    char key[96];
    uint64_t key_len;
    uint32_t kind;
    kv->raw = s->data + s->pos;
    if (!scan_u64(s, &key_len, "a key's length"))
        return false;
    if (key_len > GGUF_KEY_BYTES_MAX || key_len == 0)
        return scan_fail(s, ERR_CORRUPT, "a key of %llu bytes at offset %zu (1 to %u are allowed)",
                         (unsigned long long)key_len, s->pos - 8, GGUF_KEY_BYTES_MAX);
    kv->key = (const char *)scan_take(s, key_len, "a key");
    if (!kv->key || !scan_u32(s, &kind, "a value's type"))
        return false;
    kv->key_len = (size_t)key_len;
    if (kind >= GGUF_KINDS)
        return scan_fail(s, ERR_CORRUPT, "key '%s': unknown value type %u",
                         gguf_show(kv->key, kv->key_len, key), kind);
    kv->kind = (enum gguf_kind)kind;
    if (!scan_value(s, kv, kind, 0))
        return false;
    kv->raw_len = (size_t)(s->data + s->pos - kv->raw);
    kv->value_len = (size_t)(s->data + s->pos - kv->value);
    return true;
}

/* ---- tensor records ---- */

/* Names of types this server knows of but cannot run, so that the message helps. */
static const char *foreign_type(uint32_t id)
{
    switch (id) {
    case 4:
    case 5:
        return "Q4_2 or Q4_3, removed from the format";
    case 9:
        return "Q8_1";
    case 15:
        return "Q8_K";
    case 24:
    case 25:
    case 26:
    case 27:
        return "an integer type";
    case 28:
        return "F64";
    case 29:
        return "IQ1_M";
    case 31:
    case 32:
    case 33:
        return "a repacked Q4_0, removed from the format";
    case 39:
        return "MXFP4";
    default:
        return "unknown";
    }
}

static bool scan_tensor_type(struct scan *s, struct gguf_tensor *t, uint32_t id)
{
    char name[96];
    gguf_show(t->name, strlen(t->name), name);
    if (id > INT32_MAX || !rdu_type_from_gguf((int)id, &t->type))
        return scan_fail(s, ERR_UNSUPPORTED,
                         "tensor '%s' has element type %u (%s), which cannot be run", name, id,
                         foreign_type(id));
    const struct rdu_type_info *ti = rdu_type_info(t->type);
    if (t->dim[0] % ti->block_elems != 0)
        return scan_fail(s, ERR_CORRUPT,
                         "tensor '%s': rows of %llu elements are no whole %s blocks of %u", name,
                         (unsigned long long)t->dim[0], ti->name, ti->block_elems);
    uint64_t n = t->dim[0] / ti->block_elems;
    bool ok = !__builtin_mul_overflow(n, (uint64_t)ti->block_bytes, &n);
    for (unsigned i = 1; i < 4; i++)
        ok = ok && !__builtin_mul_overflow(n, t->dim[i], &n);
    if (!ok || n > INT64_MAX)
        return scan_fail(s, ERR_CORRUPT, "tensor '%s': its size overflows", name);
    t->bytes = n;
    return true;
}

static bool scan_tensor_dims(struct scan *s, struct gguf_tensor *t)
{
    char name[96];
    gguf_show(t->name, strlen(t->name), name);
    if (!scan_u32(s, &t->dims, "a tensor's dimensions"))
        return false;
    if (t->dims < 1 || t->dims > 4)
        return scan_fail(s, ERR_CORRUPT, "tensor '%s' has %u dimensions (1 to 4 are allowed)", name,
                         t->dims);
    for (unsigned i = 0; i < 4; i++) {
        t->dim[i] = 1;
        if (i >= t->dims)
            continue;
        if (!scan_u64(s, &t->dim[i], "a tensor's dimensions"))
            return false;
        if (t->dim[i] == 0 || t->dim[i] > INT64_MAX)
            return scan_fail(s, ERR_CORRUPT, "tensor '%s': dimension %u is %llu", name, i,
                             (unsigned long long)t->dim[i]);
    }
    return true;
}

static bool scan_tensor(struct scan *s, struct gguf_tensor *t)
{
    char shown[96];
    uint64_t len;
    uint32_t id;
    if (!scan_u64(s, &len, "a tensor name's length"))
        return false;
    if (len == 0 || len > GGUF_NAME_BYTES_MAX)
        return scan_fail(s, ERR_CORRUPT,
                         "a tensor name of %llu bytes at offset %zu (1 to %u are allowed)",
                         (unsigned long long)len, s->pos - 8, GGUF_NAME_BYTES_MAX);
    const char *name = (const char *)scan_take(s, len, "a tensor's name");
    if (!name)
        return false;
    if (memchr(name, 0, (size_t)len))
        return scan_fail(s, ERR_CORRUPT, "tensor name '%s' holds a NUL byte",
                         gguf_show(name, (size_t)len, shown));
    t->name = arena_strndup(&s->g->names, name, (size_t)len);
    return scan_tensor_dims(s, t) && scan_u32(s, &id, "a tensor's type") &&
           scan_tensor_type(s, t, id) && scan_u64(s, &t->offset, "a tensor's offset");
}

/* ---- the tables ---- */

static size_t table_mask(size_t count)
{
    size_t cap = 8;
    while (cap < count * 2)
        cap *= 2;
    return cap - 1;
}

const struct gguf_kv *gguf_find_kv(const struct gguf *g, const char *key, size_t key_len)
{
    size_t slot = (size_t)hash64_of(key, key_len, g->seed) & g->kv_mask;
    for (; g->kv_index[slot]; slot = (slot + 1) & g->kv_mask) {
        const struct gguf_kv *kv = &g->kv[g->kv_index[slot] - 1];
        if (kv->key_len == key_len && memcmp(kv->key, key, key_len) == 0)
            return kv;
    }
    return NULL;
}

static bool index_keys(struct scan *s, struct gguf *g)
{
    char key[96];
    g->kv_mask = table_mask(g->kv_count);
    g->kv_index = mem_array(g->kv_mask + 1, sizeof(*g->kv_index));
    for (size_t i = 0; i < g->kv_count; i++) {
        const struct gguf_kv *kv = &g->kv[i];
        if (gguf_find_kv(g, kv->key, kv->key_len))
            return scan_fail(s, ERR_CORRUPT, "key '%s' is given twice",
                             gguf_show(kv->key, kv->key_len, key));
        size_t slot = (size_t)hash64_of(kv->key, kv->key_len, g->seed) & g->kv_mask;
        while (g->kv_index[slot])
            slot = (slot + 1) & g->kv_mask;
        g->kv_index[slot] = (uint32_t)i + 1;
    }
    return true;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
    size_t slot = (size_t)hash64_of(name, strlen(name), g->seed) & g->tensor_mask;
    for (; g->tensor_index[slot]; slot = (slot + 1) & g->tensor_mask) {
        const struct gguf_tensor *t = &g->tensors[g->tensor_index[slot] - 1];
        if (strcmp(t->name, name) == 0)
            return t;
    }
    return NULL;
}

static bool index_tensors(struct scan *s, struct gguf *g)
{
    char name[96];
    g->tensor_mask = table_mask(g->tensors_count);
    g->tensor_index = mem_array(g->tensor_mask + 1, sizeof(*g->tensor_index));
    for (size_t i = 0; i < g->tensors_count; i++) {
        const char *n = g->tensors[i].name;
        if (gguf_find_tensor(g, n))
            return scan_fail(s, ERR_CORRUPT, "tensor '%s' is given twice",
                             gguf_show(n, strlen(n), name));
        size_t slot = (size_t)hash64_of(n, strlen(n), g->seed) & g->tensor_mask;
        while (g->tensor_index[slot])
            slot = (slot + 1) & g->tensor_mask;
        g->tensor_index[slot] = (uint32_t)i + 1;
    }
    return true;
}

/* ---- the header ---- */

static bool scan_start(struct scan *s, uint64_t *ret_tensors, uint64_t *ret_keys)
{
    char shown[96];
    uint32_t version;
    const uint8_t *magic = scan_take(s, 4, "the magic");
    if (!magic)
        return false;
    if (memcmp(magic, "GGUF", 4) != 0)
        return scan_fail(s, ERR_CORRUPT, "not a GGUF file: it starts with '%s'",
                         gguf_show((const char *)magic, 4, shown));
    if (!scan_u32(s, &version, "the version"))
        return false;
    if (version != 2 && version != 3)
        return scan_fail(s, ERR_UNSUPPORTED, "GGUF version %u%s; versions 2 and 3 can be read",
                         version, (version & 0xffff) == 0 && version ? " (a big-endian file)" : "");
    if (!scan_u64(s, ret_tensors, "the tensor count") || !scan_u64(s, ret_keys, "the key count"))
        return false;
    /* The smallest records: a tensor takes 8 + 1 + 4 + 8 + 4 + 8 bytes, a key 8 + 1 + 4 + 1. */
    if (*ret_tensors > GGUF_TENSORS_MAX || *ret_tensors > scan_left(s) / 33)
        return scan_fail(s, ERR_CORRUPT, "%llu tensors do not fit in the file or the limit of %u",
                         (unsigned long long)*ret_tensors, GGUF_TENSORS_MAX);
    if (*ret_keys > GGUF_KEYS_MAX || *ret_keys > scan_left(s) / 14)
        return scan_fail(s, ERR_CORRUPT, "%llu keys do not fit in the file or the limit of %u",
                         (unsigned long long)*ret_keys, GGUF_KEYS_MAX);
    return true;
}

static bool scan_alignment(struct scan *s, struct gguf *g)
{
    g->alignment = GGUF_ALIGNMENT_DEFAULT;
    if (!gguf_has(g, "general.alignment"))
        return true;
    struct err inner;
    if (gguf_get_u64(g, "general.alignment", &g->alignment, &inner) != ERR_OK)
        return scan_fail(s, ERR_CORRUPT, "general.alignment is no integer");
    if (g->alignment < 8 || (g->alignment & (g->alignment - 1)) != 0 ||
        g->alignment > GGUF_ALIGNMENT_MAX)
        return scan_fail(s, ERR_CORRUPT,
                         "general.alignment is %llu; it must be a power of two from 8 to %llu",
                         (unsigned long long)g->alignment, (unsigned long long)GGUF_ALIGNMENT_MAX);
    return true;
}

/* Offsets are relative to the data section, which starts at the next multiple of the alignment. */
static bool check_offsets(struct scan *s, struct gguf *g)
{
    char name[96];
    uint64_t start = ((uint64_t)s->pos + g->alignment - 1) & ~(g->alignment - 1);
    uint64_t room = s->file_bytes == UINT64_MAX ? INT64_MAX
                    : s->file_bytes > start     ? s->file_bytes - start
                                                : 0;
    for (size_t i = 0; i < g->tensors_count; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        gguf_show(t->name, strlen(t->name), name);
        if (t->offset % g->alignment != 0)
            return scan_fail(s, ERR_CORRUPT, "tensor '%s': offset %llu is no multiple of %llu",
                             name, (unsigned long long)t->offset, (unsigned long long)g->alignment);
        if (t->offset > room || t->bytes > room - t->offset)
            return scan_fail(
                s, ERR_CORRUPT,
                "tensor '%s': %llu bytes at offset %llu end past the file's data of %llu "
                "bytes: the file is cut short or damaged",
                name, (unsigned long long)t->bytes, (unsigned long long)t->offset,
                (unsigned long long)room);
    }
    return true;
}

/* The records point into the caller's bytes while parsing; afterwards into our own copy. */
static void keep_header(struct gguf *g, const uint8_t *data, size_t len)
{
    g->header = mem_alloc(len + 1);
    memcpy(g->header, data, len);
    g->header_len = len;
    for (size_t i = 0; i < g->kv_count; i++) {
        struct gguf_kv *kv = &g->kv[i];
        kv->raw = g->header + (kv->raw - data);
        kv->key = (const char *)g->header + ((const uint8_t *)kv->key - data);
        kv->value = g->header + (kv->value - data);
    }
}

static bool scan_header(struct scan *s)
{
    struct gguf *g = s->g;
    uint64_t tensors = 0, keys = 0;
    if (!scan_start(s, &tensors, &keys))
        return false;
    /* Grown as records are met, so that a made-up count costs nothing. */
    size_t cap = 0;
    for (uint64_t i = 0; i < keys; i++) {
        if (g->kv_count == cap) {
            cap = cap ? cap * 2 : 64;
            g->kv = mem_grow(g->kv, cap, sizeof(*g->kv));
        }
        struct gguf_kv *kv = &g->kv[g->kv_count];
        memset(kv, 0, sizeof(*kv));
        g->kv_count++;
        if (!scan_kv(s, kv))
            return false;
    }
    cap = 0;
    for (uint64_t i = 0; i < tensors; i++) {
        if (g->tensors_count == cap) {
            cap = cap ? cap * 2 : 64;
            g->tensors = mem_grow(g->tensors, cap, sizeof(*g->tensors));
        }
        struct gguf_tensor *t = &g->tensors[g->tensors_count];
        memset(t, 0, sizeof(*t));
        g->tensors_count++;
        if (!scan_tensor(s, t))
            return false;
    }
    g->seed = hash64_of(s->data, s->pos, 0);
    return index_keys(s, g) && index_tensors(s, g) && scan_alignment(s, g) && check_offsets(s, g);
}

enum err_code gguf_scan(const uint8_t *data, size_t len, uint64_t file_bytes, const char *label,
                        size_t *ret_wanted, struct gguf **ret, struct err *e)
{
    struct err local;
    struct scan s = {
        .data = data, .len = len, .file_bytes = file_bytes, .label = label, .e = e ? e : &local};
    s.g = mem_alloc(sizeof(*s.g));
    arena_init(&s.g->names, 16 * BASE_KIB);
    s.g->label = mem_strdup(label);
    if (!scan_header(&s)) {
        gguf_close(&s.g);
        if (ret_wanted)
            *ret_wanted = s.wanted;
        return s.e->code;
    }
    keep_header(s.g, data, s.pos);
    *ret = s.g;
    return ERR_OK;
}
