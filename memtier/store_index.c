/* The store's index as a value, and as bytes on disk.
 *
 * On disk (little endian, no padding between fields, the whole padded with zeros to MEMTIER_ALIGN
 * so that the file also serves as the direct-I/O probe of the loader): header  magic[8] version:u32
 * header_bytes:u32 body_bytes:u64 hash:2*u64 generation:u64 files:u32 segments:u32 objects:u32
 * next_file_id:u32 files   id:u32 bytes:u64 name_len:u16 name segments  hash:2*u64 bytes:u64
 * offset:u64 file_idx:u32 kind:u32 objects   name_len:u16 name meta_bytes:u64 meta_segment:u32
 * [meta if inline] segments_count:u32 segment_idx:u32[] The hash is XXH3-128 over header (with the
 * hash as zeros) and body. It is checked before anything else is believed; every count and offset
 * is checked all the same, because a hash does not say who wrote the file. */
#include "memtier/store.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_BYTES 64
#define HASH_AT 24
static const char magic[8] = {'S', 'W', 'Y', 'S', 'T', 'O', 'R', 'E'};

struct store_meta *store_meta_new(const void *data, size_t bytes)
{
    struct store_meta *m = mem_alloc(sizeof(*m) + bytes + 1);
    m->refs = 1;
    m->bytes = bytes;
    if (bytes != 0 && data != NULL)
        memcpy(m->data, data, bytes);
    return m;
}

static void meta_unref(struct store_meta *m)
{
    if (m != NULL && --m->refs == 0)
        free(m);
}

struct store_index *store_index_new(void)
{
    return mem_alloc(sizeof(struct store_index));
}

static void object_done(struct store_object *o)
{
    meta_unref(o->meta);
    free(o->name);
    free(o->segment_idx);
    free(o->infos);
}

void store_index_free(struct store_index *x)
{
    if (x == NULL)
        return;
    for (size_t i = 0; i < x->files_count; i++)
        free(x->files[i].name);
    for (size_t i = 0; i < x->objects_count; i++)
        object_done(&x->objects[i]);
    free(x->files);
    free(x->segments);
    free(x->objects);
    free(x->slots);
    free(x);
}

/* ---- look-up ---- */

static size_t slot_of(const struct store_index *x, struct hash128 h)
{
    size_t at = (size_t)(h.lo ^ (h.hi >> 7)) & (x->slots_count - 1);
    while (x->slots[at] != STORE_NONE && !hash128_equal(x->segments[x->slots[at]].info.hash, h))
        at = (at + 1) & (x->slots_count - 1);
    return at;
}

static void rehash(struct store_index *x, size_t segments)
{
    size_t count = 64;
    while (count < segments * 2)
        count *= 2;
    free(x->slots);
    x->slots = mem_array(count, sizeof(*x->slots));
    x->slots_count = count;
    memset(x->slots, 0xff, count * sizeof(*x->slots));
    for (size_t i = 0; i < x->segments_count; i++)
        x->slots[slot_of(x, x->segments[i].info.hash)] = (uint32_t)i;
}

uint32_t store_index_find(const struct store_index *x, struct hash128 hash)
{
    return x->slots_count == 0 ? STORE_NONE : x->slots[slot_of(x, hash)];
}

uint32_t store_index_find_object(const struct store_index *x, const char *name)
{
    for (size_t i = 0; i < x->objects_count; i++) {
        if (strcmp(x->objects[i].name, name) == 0)
            return (uint32_t)i;
    }
    return STORE_NONE;
}

/* ---- changes to a value that is not published yet ---- */

uint32_t store_index_add_file(struct store_index *x, uint32_t id, const char *name, uint64_t bytes)
{
    x->files = mem_grow(x->files, x->files_count + 1, sizeof(*x->files));
    x->files[x->files_count] = (struct store_file){id, mem_strdup(name), bytes};
    return (uint32_t)x->files_count++;
}

static uint32_t append_segment(struct store_index *x, const struct store_segment *s)
{
    if ((x->segments_count + 1) * 2 > x->slots_count)
        rehash(x, (x->segments_count + 1) * 2);
    /* Grow by doubling: an import adds its segments one by one. */
    if ((x->segments_count & (x->segments_count - 1)) == 0)
        x->segments = mem_grow(x->segments, BASE_MAX(x->segments_count * 2, (size_t)16),
                               sizeof(*x->segments));
    x->segments[x->segments_count] = *s;
    x->segments[x->segments_count].refs = 0;
    x->slots[slot_of(x, s->info.hash)] = (uint32_t)x->segments_count;
    return (uint32_t)x->segments_count++;
}

uint32_t store_index_put_segment(struct store_index *x, const struct store_segment *s)
{
    uint32_t idx = store_index_find(x, s->info.hash);
    if (idx == STORE_NONE)
        return append_segment(x, s);
    x->segments[idx].file_idx = s->file_idx;
    x->segments[idx].offset = s->offset;
    return idx;
}

static void object_ref(struct store_index *x, const struct store_object *o, int step)
{
    for (size_t i = 0; i < o->view.segments_count; i++)
        x->segments[o->segment_idx[i]].refs += (uint32_t)step;
    if (o->meta_segment != STORE_NONE)
        x->segments[o->meta_segment].refs += (uint32_t)step;
}

static void object_init(struct store_index *x, struct store_object *o, const char *name,
                        const uint32_t *segment_idx, size_t count)
{
    o->name = mem_strdup(name);
    o->segment_idx = mem_array(BASE_MAX(count, (size_t)1), sizeof(*o->segment_idx));
    o->infos = mem_array(BASE_MAX(count, (size_t)1), sizeof(*o->infos));
    for (size_t i = 0; i < count; i++) {
        o->segment_idx[i] = segment_idx[i];
        o->infos[i] = x->segments[segment_idx[i]].info;
    }
    o->view = (struct memtier_object){
        .name = o->name,
        .meta = o->meta == NULL ? NULL : o->meta->data,
        .meta_bytes = (size_t)o->meta_bytes,
        .segments = o->infos,
        .segments_count = count,
    };
    object_ref(x, o, 1);
}

void store_index_put_object(struct store_index *x, const char *name, struct store_meta *meta,
                            uint32_t meta_segment, const uint32_t *segment_idx, size_t count)
{
    uint32_t at = store_index_find_object(x, name);
    if (at == STORE_NONE) {
        x->objects = mem_grow(x->objects, x->objects_count + 1, sizeof(*x->objects));
        at = (uint32_t)x->objects_count++;
    } else {
        object_ref(x, &x->objects[at], -1);
        object_done(&x->objects[at]);
    }
    x->objects[at] = (struct store_object){.meta = meta, .meta_segment = meta_segment};
    x->objects[at].meta_bytes = meta->bytes;
    object_init(x, &x->objects[at], name, segment_idx, count);
}

void store_index_drop_object(struct store_index *x, uint32_t object_idx)
{
    assert(object_idx < x->objects_count);
    object_ref(x, &x->objects[object_idx], -1);
    object_done(&x->objects[object_idx]);
    memmove(&x->objects[object_idx], &x->objects[object_idx + 1],
            (x->objects_count - object_idx - 1) * sizeof(*x->objects));
    x->objects_count--;
}

struct store_index *store_index_clone(const struct store_index *x)
{
    struct store_index *c = store_index_new();
    c->generation = x->generation;
    c->next_file_id = x->next_file_id;
    for (size_t i = 0; i < x->files_count; i++)
        store_index_add_file(c, x->files[i].id, x->files[i].name, x->files[i].bytes);
    for (size_t i = 0; i < x->segments_count; i++)
        append_segment(c, &x->segments[i]);
    c->objects = mem_array(BASE_MAX(x->objects_count, (size_t)1), sizeof(*c->objects));
    for (size_t i = 0; i < x->objects_count; i++) {
        const struct store_object *o = &x->objects[i];
        if (o->meta != NULL)
            o->meta->refs++;
        c->objects[i] = (struct store_object){
            .meta = o->meta, .meta_bytes = o->meta_bytes, .meta_segment = o->meta_segment};
        object_init(c, &c->objects[i], o->name, o->segment_idx, o->view.segments_count);
        c->objects_count++;
    }
    return c;
}

void store_index_sweep(struct store_index *x)
{
    uint32_t *segment_to = mem_array(x->segments_count + 1, sizeof(*segment_to));
    uint32_t *file_to = mem_array(x->files_count + 1, sizeof(*file_to));
    size_t segments = 0, files = 0;

    for (size_t i = 0; i < x->segments_count; i++) {
        segment_to[i] = STORE_NONE;
        if (x->segments[i].refs == 0)
            continue;
        file_to[x->segments[i].file_idx] = 1;
        segment_to[i] = (uint32_t)segments;
        x->segments[segments++] = x->segments[i];
    }
    x->segments_count = segments;
    for (size_t i = 0; i < x->files_count; i++) {
        if (file_to[i] == 0) {
            free(x->files[i].name);
            continue;
        }
        file_to[i] = (uint32_t)files;
        x->files[files++] = x->files[i];
    }
    x->files_count = files;
    for (size_t i = 0; i < segments; i++)
        x->segments[i].file_idx = file_to[x->segments[i].file_idx];
    for (size_t i = 0; i < x->objects_count; i++) {
        struct store_object *o = &x->objects[i];
        for (size_t k = 0; k < o->view.segments_count; k++)
            o->segment_idx[k] = segment_to[o->segment_idx[k]];
        if (o->meta_segment != STORE_NONE)
            o->meta_segment = segment_to[o->meta_segment];
    }
    /* append_segment doubles at powers of two: give it an array of the size it expects. */
    size_t cap = 16;
    while (cap < segments)
        cap *= 2;
    x->segments = mem_grow(x->segments, cap, sizeof(*x->segments));
    rehash(x, segments * 2 + 1);
    free(segment_to);
    free(file_to);
}

/* ---- bytes ---- */

static void put(struct buf *b, uint64_t v, size_t bytes)
{
    unsigned char le[8];
    for (size_t i = 0; i < bytes; i++)
        le[i] = (unsigned char)(v >> (8 * i));
    buf_append(b, le, bytes);
}

static void put_name(struct buf *b, const char *name)
{
    size_t len = strlen(name);
    put(b, len, 2);
    buf_append(b, name, len);
}

static void format_object(const struct store_object *o, struct buf *b)
{
    put_name(b, o->name);
    put(b, o->meta_bytes, 8);
    put(b, o->meta_segment, 4);
    if (o->meta_segment == STORE_NONE && o->meta_bytes != 0)
        buf_append(b, o->meta->data, (size_t)o->meta_bytes);
    put(b, o->view.segments_count, 4);
    for (size_t i = 0; i < o->view.segments_count; i++)
        put(b, o->segment_idx[i], 4);
}

static void put_at(char *at, uint64_t v, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (char)(v >> (8 * i));
}

void store_index_format(const struct store_index *x, struct buf *b)
{
    buf_clear(b);
    buf_append(b, magic, sizeof(magic));
    put(b, STORE_VERSION, 4);
    put(b, HEADER_BYTES, 4);
    put(b, 0, 8); /* body_bytes, below */
    put(b, 0, 8);
    put(b, 0, 8); /* hash, below */
    put(b, x->generation, 8);
    put(b, x->files_count, 4);
    put(b, x->segments_count, 4);
    put(b, x->objects_count, 4);
    put(b, x->next_file_id, 4);
    assert(b->len == HEADER_BYTES);
    for (size_t i = 0; i < x->files_count; i++) {
        put(b, x->files[i].id, 4);
        put(b, x->files[i].bytes, 8);
        put_name(b, x->files[i].name);
    }
    for (size_t i = 0; i < x->segments_count; i++) {
        const struct store_segment *s = &x->segments[i];
        put(b, s->info.hash.lo, 8);
        put(b, s->info.hash.hi, 8);
        put(b, s->info.bytes, 8);
        put(b, s->offset, 8);
        put(b, s->file_idx, 4);
        put(b, (uint64_t)s->info.kind, 4);
    }
    for (size_t i = 0; i < x->objects_count; i++)
        format_object(&x->objects[i], b);
    put_at(b->data + 16, b->len - HEADER_BYTES, 8);
    struct hash128 h = hash128_of(b->data, b->len, 0);
    put_at(b->data + HASH_AT, h.lo, 8);
    put_at(b->data + HASH_AT + 8, h.hi, 8);
    static const char zeros[MEMTIER_ALIGN];
    buf_append(b, zeros, (size_t)(store_padded(b->len) - b->len));
}

/* Reader over untrusted bytes: past the end it yields zeros and remembers. */
struct reader {
    const unsigned char *data;
    size_t len, at;
    bool torn;
};

static const unsigned char *take(struct reader *r, size_t bytes)
{
    if (r->torn || bytes > r->len - r->at) {
        r->torn = true;
        return NULL;
    }
    r->at += bytes;
    return r->data + r->at - bytes;
}

static uint64_t get(struct reader *r, size_t bytes)
{
    const unsigned char *p = take(r, bytes);
    uint64_t v = 0;
    for (size_t i = 0; p != NULL && i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* Names become paths and messages: no control characters, and nothing that leaves the directory. */
static char *get_name(struct reader *r, bool is_file)
{
    size_t len = (size_t)get(r, 2);
    const unsigned char *p = take(r, len);
    bool ok = p != NULL && len > 0 && len <= STORE_NAME_MAX && p[0] != '.';
    for (size_t i = 0; ok && i < len; i++)
        ok = p[i] >= 0x20 && p[i] != 0x7f && !(is_file && p[i] == '/');
    if (!ok) {
        r->torn = true;
        return NULL;
    }
    return mem_strndup((const char *)p, len);
}

static void parse_files(struct reader *r, struct store_index *x, size_t count)
{
    for (size_t i = 0; i < count && !r->torn; i++) {
        uint32_t id = (uint32_t)get(r, 4);
        uint64_t bytes = get(r, 8);
        char *name = get_name(r, true);
        bool grows = x->files_count == 0 || id > x->files[x->files_count - 1].id;
        if (name == NULL || !grows || id >= x->next_file_id || bytes % MEMTIER_ALIGN != 0)
            r->torn = true;
        else
            store_index_add_file(x, id, name, bytes);
        free(name);
    }
}

static void parse_segments(struct reader *r, struct store_index *x, size_t count)
{
    for (size_t i = 0; i < count && !r->torn; i++) {
        struct store_segment s = {0};
        s.info.hash.lo = get(r, 8);
        s.info.hash.hi = get(r, 8);
        s.info.bytes = get(r, 8);
        s.offset = get(r, 8);
        s.file_idx = (uint32_t)get(r, 4);
        uint64_t kind = get(r, 4);
        s.info.kind = (enum memtier_kind)kind;
        if (r->torn || kind >= MEMTIER_KINDS || s.file_idx >= x->files_count || s.info.bytes == 0 ||
            s.info.bytes > INT64_MAX / 2 || s.offset % MEMTIER_ALIGN != 0 ||
            s.offset > x->files[s.file_idx].bytes ||
            store_padded(s.info.bytes) > x->files[s.file_idx].bytes - s.offset ||
            store_index_find(x, s.info.hash) != STORE_NONE)
            r->torn = true;
        else
            append_segment(x, &s);
    }
}

static bool parse_object_meta(struct reader *r, struct store_index *x, struct store_object *o)
{
    o->meta_bytes = get(r, 8);
    o->meta_segment = (uint32_t)get(r, 4);
    if (r->torn || o->meta_bytes > STORE_META_MAX)
        return false;
    if (o->meta_segment != STORE_NONE)
        return o->meta_segment < x->segments_count &&
               x->segments[o->meta_segment].info.bytes == o->meta_bytes;
    const unsigned char *p = take(r, (size_t)o->meta_bytes);
    if (p == NULL)
        return false;
    o->meta = store_meta_new(p, (size_t)o->meta_bytes);
    return true;
}

static void parse_object(struct reader *r, struct store_index *x)
{
    struct store_object o = {0};
    char *name = get_name(r, false);
    bool ok = name != NULL && store_index_find_object(x, name) == STORE_NONE &&
              parse_object_meta(r, x, &o);
    size_t count = (size_t)get(r, 4);
    uint32_t *idx = NULL;
    if (ok && !r->torn && count <= (r->len - r->at) / 4) {
        idx = mem_array(count + 1, sizeof(*idx));
        for (size_t i = 0; i < count; i++) {
            idx[i] = (uint32_t)get(r, 4);
            ok = ok && idx[i] < x->segments_count;
        }
    } else {
        ok = false;
    }
    if (ok) {
        object_init(x, &o, name, idx, count);
        x->objects[x->objects_count++] = o;
    } else {
        r->torn = true;
        meta_unref(o.meta);
    }
    free(name);
    free(idx);
}

static enum err_code check_header(const unsigned char *p, size_t len, const char *path,
                                  size_t *ret_bytes, struct err *e)
{
    const char *cure = "restore it from a backup, or move the store away and add the experts again";
    if (len < HEADER_BYTES || memcmp(p, magic, sizeof(magic)) != 0)
        return err_set(e, ERR_CORRUPT, "%s is not a store index (%zu bytes): %s", path, len, cure);
    struct reader r = {p, len, sizeof(magic), false};
    uint64_t version = get(&r, 4), header = get(&r, 4), body = get(&r, 8);
    if (version != STORE_VERSION)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s has format version %" PRIu64 ", this program knows %d: use the version "
                       "that wrote it, or import into a new store",
                       path, version, STORE_VERSION);
    if (header != HEADER_BYTES || body > len - HEADER_BYTES)
        return err_set(e, ERR_CORRUPT, "%s is truncated (%zu bytes of %" PRIu64 "): %s", path, len,
                       body + HEADER_BYTES, cure);
    struct hash128 want = {get(&r, 8), get(&r, 8)};
    unsigned char *copy = mem_alloc(HEADER_BYTES + (size_t)body);
    memcpy(copy, p, HEADER_BYTES + (size_t)body);
    memset(copy + HASH_AT, 0, 16);
    bool same = hash128_equal(hash128_of(copy, HEADER_BYTES + (size_t)body, 0), want);
    free(copy);
    if (!same)
        return err_set(e, ERR_CORRUPT, "%s is damaged (checksum does not match): %s", path, cure);
    *ret_bytes = HEADER_BYTES + (size_t)body;
    return ERR_OK;
}

enum err_code store_index_parse(const void *data, size_t len, const char *path,
                                struct store_index **ret, struct err *e)
{
    size_t bytes = 0;
    enum err_code rc = check_header(data, len, path, &bytes, e);
    if (rc != ERR_OK)
        return rc;
    struct reader r = {data, bytes, HASH_AT + 16, false};
    struct store_index *x = store_index_new();
    x->generation = get(&r, 8);
    size_t files = (size_t)get(&r, 4), segments = (size_t)get(&r, 4), objects = (size_t)get(&r, 4);
    x->next_file_id = (uint32_t)get(&r, 4);
    /* Every entry takes bytes of the file, so counts beyond that are nonsense before we allocate.
     */
    r.torn = r.torn || files > bytes / 14 || segments > BASE_MIN(bytes / 40, STORE_SEGMENTS_MAX) ||
             objects > BASE_MIN(bytes / 18, STORE_OBJECTS_MAX);
    if (!r.torn)
        x->objects = mem_array(objects + 1, sizeof(*x->objects));
    parse_files(&r, x, files);
    parse_segments(&r, x, segments);
    for (size_t i = 0; i < objects && !r.torn; i++)
        parse_object(&r, x);
    if (r.torn || r.at != r.len) {
        store_index_free(x);
        return err_set(e, ERR_CORRUPT,
                       "%s contradicts itself near byte %zu although its checksum matches: it was "
                       "not written by this program",
                       path, r.at);
    }
    *ret = x;
    return ERR_OK;
}
