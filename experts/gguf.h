/* Inside of the GGUF reader: shared by gguf.c (files), gguf_scan.c (parsing), gguf_meta.c
 * (accessors) and gguf_write.c (headers of merged and split files). */
#ifndef SWITCHYARD_EXPERTS_GGUF_H
#define SWITCHYARD_EXPERTS_GGUF_H

#include "experts/experts.h"

enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STR,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS,
};

/* Limits. The format has none; these are far above real files (Qwen2.5's header is 6 MB with 152 k
 * tokens and 151 k merges) and keep what a hostile header can make us allocate in proportion. */
#define GGUF_HEADER_BYTES_MAX ((uint64_t)256 << 20)
#define GGUF_KEYS_MAX 65536u
#define GGUF_TENSORS_MAX 262144u
#define GGUF_KEY_BYTES_MAX 65535u
#define GGUF_NAME_BYTES_MAX 255u
#define GGUF_NESTING_MAX 4
#define GGUF_ALIGNMENT_MAX ((uint64_t)1 << 20)
#define GGUF_ALIGNMENT_DEFAULT 32u
#define GGUF_SPLITS_MAX 1024u
/* Every this many elements of a string array its position is noted, so that one element is found
 * without walking from the start and the notes stay small beside the strings. */
#define GGUF_STR_STRIDE 16

struct gguf_kv {
    const uint8_t *raw; /* the whole record, key included, as it stands in the header */
    size_t raw_len;
    const char *key;
    size_t key_len;
    enum gguf_kind kind, elem; /* elem: of arrays */
    uint64_t count;            /* of arrays */
    const uint8_t *value; /* scalars, strings (past the length), first array element; unaligned */
    size_t value_len;
    uint32_t *stride; /* string arrays: offsets from `value` of elements 0, 16, 32, ...; owned */
};

struct gguf_file {
    int fd;
    uint64_t data_offset; /* where its tensor data section starts */
};

struct gguf {
    char *label;
    uint8_t *header;
    size_t header_len;
    uint64_t alignment;
    struct gguf_kv *kv;
    size_t kv_count;
    uint32_t *kv_index; /* open addressing over kv: index + 1, 0 = free */
    struct gguf_tensor *tensors;
    size_t tensors_count;
    uint32_t *tensor_index;
    size_t kv_mask, tensor_mask;
    uint64_t seed; /* of both tables: from the header's bytes, so collisions cannot be planned */
    struct arena names;
    struct gguf_file *files; /* NULL after gguf_parse */
    size_t files_count;
};

/* Parse `data`, the first `len` of `file_bytes` bytes. Returns ERR_BUSY with *ret_wanted set when
 * the header goes on past `len` (read more and call again). On success *ret owns a copy of the
 * header. */
enum err_code gguf_scan(const uint8_t *data, size_t len, uint64_t file_bytes, const char *label,
                        size_t *ret_wanted, struct gguf **ret, struct err *e) BASE_NODISCARD;
const struct gguf_kv *gguf_find_kv(const struct gguf *g, const char *key, size_t key_len);
/* Part of a tensor's bytes; the range must lie inside it. */
enum err_code gguf_read_range(const struct gguf *g, const struct gguf_tensor *t, uint64_t from,
                              size_t len, void *dst, struct err *e) BASE_NODISCARD;
/* "general.name" with anything unprintable escaped and long text cut; for messages. */
const char *gguf_show(const char *s, size_t len, char out[96]);
bool gguf_str_is(struct gguf_str s, const char *text);
const char *gguf_kind_name(uint32_t kind);
size_t gguf_kind_bytes(enum gguf_kind kind); /* 0 for strings and arrays */

/* Building headers. Numbers are little-endian, as everywhere in GGUF. */
void gguf_put_start(struct buf *out, uint64_t tensors, uint64_t keys);
void gguf_put_kv(struct buf *out, const struct gguf_kv *kv);
void gguf_put_kv_str(struct buf *out, const char *key, const char *value);
void gguf_put_kv_u32(struct buf *out, const char *key, uint32_t value);
void gguf_put_tensor(struct buf *out, const struct gguf_tensor *t, enum rdu_type type,
                     uint64_t offset);

#endif
