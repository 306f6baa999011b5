/* Private to memtier/: what the store's three files and the residency code share.
 *
 * A store directory:
 *   lock            flock by the one writer or daemon; holds "<pid> <what>"
 *   index           the index, padded to MEMTIER_ALIGN; always replaced as a whole
 *   data/<id>-<object>.seg   segments in load order, each padded to MEMTIER_ALIGN
 *
 * The index in memory is one immutable value, `struct store_index`. A change builds a new value
 * from the old one, writes it, and only then swaps the pointer, so a failed write leaves memory and
 * disk as they were. */
#ifndef SWITCHYARD_MEMTIER_STORE_H
#define SWITCHYARD_MEMTIER_STORE_H

#include "memtier/memtier.h"

#define STORE_VERSION 1
#define STORE_NONE UINT32_MAX
#define STORE_NAME_MAX 255      /* bytes of an object's name */
#define STORE_META_INLINE 16384 /* larger descriptions become a segment of their own */
#define STORE_META_MAX ((uint64_t)1 << 30)
#define STORE_INDEX_MAX ((size_t)1 << 31)
#define STORE_SEGMENTS_MAX (16u << 20) /* limits of one index */
#define STORE_OBJECTS_MAX (1u << 16)

struct store_file {
    uint32_t id; /* unique for the life of the store; part of the file's name */
    char *name;  /* inside data/ */
    uint64_t bytes;
};

struct store_segment {
    struct memtier_segment_info info;
    uint64_t offset; /* in its file, a multiple of MEMTIER_ALIGN */
    uint32_t file_idx;
    uint32_t refs; /* objects that name it; derived, not on disk */
};

/* A description, shared by the index values that contain the object. Guarded by the store's user.
 */
struct store_meta {
    size_t refs, bytes;
    unsigned char data[];
};

struct store_object {
    struct memtier_object view; /* points into the fields below */
    char *name;
    struct store_meta *meta; /* NULL while a separate segment has not been read yet */
    uint64_t meta_bytes;
    uint32_t meta_segment; /* STORE_NONE = inline */
    uint32_t *segment_idx; /* [view.segments_count] */
    struct memtier_segment_info *infos;
};

struct store_index {
    uint64_t generation;
    uint32_t next_file_id;
    struct store_file *files;
    size_t files_count;
    struct store_segment *segments;
    size_t segments_count;
    struct store_object *objects;
    size_t objects_count;
    uint32_t *slots; /* open addressing by hash; STORE_NONE = empty */
    size_t slots_count;
};

struct memtier_store {
    char *dir, *index_path, *data_dir;
    enum memtier_access access;
    int lock_fd; /* -1 for READ */
    /* Guards the pointer `index` and its reference counts against memtier_refresh on the engine
     * thread while another thread commits; never held across I/O. */
    struct lock lock;
    struct store_index *index;
    struct memtier_writer *writer; /* at most one */
    unsigned attached;             /* memtiers that serve from here: gc then punches no holes */
};

static inline uint64_t store_padded(uint64_t bytes)
{
    return (bytes + MEMTIER_ALIGN - 1) / MEMTIER_ALIGN * MEMTIER_ALIGN;
}

/* ---- store_index.c: the value, its text on disk ---- */
struct store_index *store_index_new(void);
void store_index_free(struct store_index *x);
struct store_index *store_index_clone(const struct store_index *x);
/* Parse untrusted bytes; `path` names them in errors. */
enum err_code store_index_parse(const void *data, size_t len, const char *path,
                                struct store_index **ret, struct err *e) BASE_NODISCARD;
void store_index_format(const struct store_index *x, struct buf *ret);
uint32_t store_index_find(const struct store_index *x, struct hash128 hash);
uint32_t store_index_find_object(const struct store_index *x, const char *name);
uint32_t store_index_add_file(struct store_index *x, uint32_t id, const char *name, uint64_t bytes);
/* Adds the segment, or points the known one at the new place. */
uint32_t store_index_put_segment(struct store_index *x, const struct store_segment *s);
/* Adds or replaces an object. Takes over one reference of `meta`. */
void store_index_put_object(struct store_index *x, const char *name, struct store_meta *meta,
                            uint32_t meta_segment, const uint32_t *segment_idx, size_t count);
void store_index_drop_object(struct store_index *x, uint32_t object_idx);
/* Drop segments nobody names and files without segments. */
void store_index_sweep(struct store_index *x);
struct store_meta *store_meta_new(const void *data, size_t bytes);

/* ---- store.c ---- */
char *store_data_path(const struct memtier_store *s, const char *file_name);
/* Write `x` to disk; on success it becomes the store's index, on failure it is freed. */
enum err_code store_publish(struct memtier_store *s, struct store_index *x,
                            struct err *e) BASE_NODISCARD;
enum err_code store_check_writable(const struct memtier_store *s, struct err *e) BASE_NODISCARD;
/* Read and check the payload of a segment of index `x` into dst[info.bytes]. */
enum err_code store_read_segment(const struct memtier_store *s, const struct store_index *x,
                                 uint32_t segment_idx, void *dst, struct err *e) BASE_NODISCARD;
/* The file is there and long enough for the segment. */
bool store_segment_present(const struct memtier_store *s, const struct store_segment *seg);

/* ---- store_write.c ---- */
/* Remove data files the index does not name and left-over temporary files. */
enum err_code store_remove_orphans(struct memtier_store *s, uint64_t *ret_files,
                                   uint64_t *ret_bytes, struct err *e) BASE_NODISCARD;

#endif
