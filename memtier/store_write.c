/* Writing to the store: objects, removal, gc. One writer at a time, and the order of steps is what
 * makes a crash harmless: data is written and synced under a name the index does not know, then the
 * index is replaced, and files are removed only after the index that did not name them was. */
#include "memtier/store.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Room left free on the file system for the index and other people. */
#define DISK_SLACK ((uint64_t)4 << 20)
/* Start write-back this often, so that the final fsync is short and dirty memory stays small. */
#define FLUSH_BYTES ((uint64_t)32 << 20)
#define WRITE_BLOCK ((size_t)8 << 20)

struct memtier_writer {
    struct memtier_store *store;
    char *object;
    uint64_t bytes_expected, bytes_seen; /* payload, shared included */
    int fd;                              /* -1 until the first byte that is really new */
    char *file_name, *path;
    uint64_t file_bytes, flushed;
    struct store_segment *fresh; /* written by us: file_idx is not known yet */
    size_t fresh_count;
    struct hash128 *order; /* the object's segments in load order */
    size_t order_count;
    bool failed;
    struct err why;
};

static uint64_t disk_free(const struct memtier_store *s)
{
    struct statvfs v;
    if (statvfs(s->data_dir, &v) != 0)
        return UINT64_MAX; /* not knowable: the write itself will tell */
    return (uint64_t)v.f_bavail * v.f_frsize;
}

static enum err_code refuse_full(const struct memtier_store *s, uint64_t need, uint64_t have,
                                 struct err *e)
{
    char a[32], b[32];
    return err_set(e, ERR_IO,
                   "disk full: %s needs %s, its file system has %s free: make room, or use a store "
                   "on another file system",
                   s->data_dir, size_format(need, a, sizeof(a)), size_format(have, b, sizeof(b)));
}

/* Only what cannot already be in the store counts; the exact check comes with the first new byte.
 */
static enum err_code check_expected(const struct memtier_store *s, uint64_t expected, struct err *e)
{
    uint64_t have = disk_free(s), shared = memtier_store_bytes(s);
    uint64_t need = expected > shared ? expected - shared : 0;
    if (need != 0 && (have <= DISK_SLACK || need > have - DISK_SLACK))
        return refuse_full(s, need, have, e);
    return ERR_OK;
}

static bool name_valid(const char *name)
{
    size_t len = name == NULL ? 0 : strlen(name);
    if (len == 0 || len > STORE_NAME_MAX || name[0] == '.')
        return false;
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    }
    return true;
}

enum err_code memtier_writer_open(struct memtier_store *s, const char *object,
                                  uint64_t bytes_expected, struct memtier_writer **ret,
                                  struct err *e)
{
    enum err_code rc = store_check_writable(s, e);
    if (rc != ERR_OK)
        return rc;
    if (!name_valid(object))
        return err_set(e, ERR_INVALID,
                       "an object's name has 1 to %d printable bytes and does not begin with a dot",
                       STORE_NAME_MAX);
    if (s->index->next_file_id == UINT32_MAX ||
        (s->index->objects_count >= STORE_OBJECTS_MAX && memtier_store_find(s, object) == NULL))
        return err_set(e, ERR_TOO_LARGE, "store %s has no room for another object", s->dir);
    rc = check_expected(s, bytes_expected, e);
    if (rc != ERR_OK)
        return rc;
    struct memtier_writer *w = mem_alloc(sizeof(*w));
    w->store = s;
    w->object = mem_strdup(object);
    w->bytes_expected = bytes_expected;
    w->fd = -1;
    s->writer = w;
    *ret = w;
    return ERR_OK;
}

/* The object's name with everything odd replaced: for people who look into data/. */
static char *file_name_of(uint32_t id, const char *object)
{
    char clean[61];
    size_t len = BASE_MIN(strlen(object), sizeof(clean) - 1);
    for (size_t i = 0; i < len; i++) {
        char c = object[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '.';
        clean[i] = ok ? c : '_';
    }
    clean[len] = '\0';
    return mem_format("%08x-%s.seg", id, clean);
}

static enum err_code start_file(struct memtier_writer *w, uint64_t first_bytes, struct err *e)
{
    struct memtier_store *s = w->store;
    uint64_t left = w->bytes_expected > w->bytes_seen ? w->bytes_expected - w->bytes_seen : 0;
    uint64_t need = BASE_MAX(store_padded(left), store_padded(first_bytes)), have = disk_free(s);
    if (have <= DISK_SLACK || need > have - DISK_SLACK)
        return refuse_full(s, need, have, e);
    w->file_name = file_name_of(s->index->next_file_id, w->object);
    w->path = store_data_path(s, w->file_name);
    w->fd = open(w->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fd < 0)
        return err_set_errno(e, ERR_IO, "cannot create %s", w->path);
    /* Contiguous extents read faster, and a disk that fills up is noticed now. Not every file
     * system can; the size is the caller's guess, so what remains is cut off at commit. */
    if (fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)need) != 0 && errno == ENOSPC)
        return refuse_full(s, need, disk_free(s), e);
    return ERR_OK;
}

static enum err_code write_fully(struct memtier_writer *w, const char *data, uint64_t bytes,
                                 struct err *e)
{
    while (bytes > 0) {
        ssize_t n = pwrite(w->fd, data, (size_t)BASE_MIN(bytes, WRITE_BLOCK), (off_t)w->file_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            const char *what = errno == ENOSPC || errno == EDQUOT ? "disk full: " : "";
            const char *cure = errno == EFBIG ? " (a file size limit, see ulimit -f)" : "";
            return err_set_errno(e, ERR_IO, "%scannot write %s at byte %" PRIu64 "%s", what,
                                 w->path, w->file_bytes, cure);
        }
        data += n;
        bytes -= (uint64_t)n;
        w->file_bytes += (uint64_t)n;
    }
    return ERR_OK;
}

static enum err_code write_segment(struct memtier_writer *w, const void *data, uint64_t bytes,
                                   struct err *e)
{
    static const char zeros[MEMTIER_ALIGN];
    enum err_code rc = ERR_OK;
    if (w->fd < 0)
        rc = start_file(w, bytes, e);
    if (rc == ERR_OK)
        rc = write_fully(w, data, bytes, e);
    if (rc == ERR_OK)
        rc = write_fully(w, zeros, store_padded(bytes) - bytes, e);
    if (rc == ERR_OK && w->file_bytes - w->flushed >= FLUSH_BYTES) {
        /* Advice only: an error would come again, and count, from fsync. */
        (void)sync_file_range(w->fd, (off_t)w->flushed, (off_t)(w->file_bytes - w->flushed),
                              SYNC_FILE_RANGE_WRITE);
        w->flushed = w->file_bytes;
    }
    return rc;
}

static bool written_already(const struct memtier_writer *w, struct hash128 hash)
{
    for (size_t i = 0; i < w->fresh_count; i++) {
        if (hash128_equal(w->fresh[i].info.hash, hash))
            return true;
    }
    uint32_t at = store_index_find(w->store->index, hash);
    /* A file that vanished or was cut is mended by writing the segment anew. */
    return at != STORE_NONE && store_segment_present(w->store, &w->store->index->segments[at]);
}

/* Write the payload unless it is there; *ret_hash names it. */
static enum err_code add_payload(struct memtier_writer *w, enum memtier_kind kind, const void *data,
                                 size_t bytes, struct hash128 *ret_hash, bool *ret_shared,
                                 struct err *e)
{
    struct hash128 hash = hash128_of(data, bytes, 0);
    bool shared = written_already(w, hash);
    if (!shared) {
        uint64_t offset = w->file_bytes;
        enum err_code rc = write_segment(w, data, bytes, e);
        if (rc != ERR_OK) {
            w->failed = true;
            if (e != NULL)
                w->why = *e;
            return rc;
        }
        w->fresh = mem_grow(w->fresh, w->fresh_count + 1, sizeof(*w->fresh));
        w->fresh[w->fresh_count++] = (struct store_segment){
            .info = {.hash = hash, .bytes = bytes, .kind = kind}, .offset = offset};
    }
    *ret_hash = hash;
    *ret_shared = shared;
    return ERR_OK;
}

static enum err_code refuse_failed(const struct memtier_writer *w, struct err *e)
{
    return err_set(e, w->why.code != ERR_OK ? w->why.code : ERR_IO,
                   "object %s cannot be finished after: %s", w->object,
                   w->why.msg[0] != '\0' ? w->why.msg : "a failed write");
}

enum err_code memtier_writer_add(struct memtier_writer *w, enum memtier_kind kind, const void *data,
                                 size_t bytes, bool *ret_shared, struct err *e)
{
    if (w->failed)
        return refuse_failed(w, e);
    if (bytes == 0 || data == NULL || (unsigned)kind >= MEMTIER_KINDS)
        return err_set(e, ERR_INVALID, "object %s: a segment needs bytes and a kind", w->object);
    if (w->store->index->segments_count + w->fresh_count >= STORE_SEGMENTS_MAX)
        return err_set(e, ERR_TOO_LARGE, "object %s: the store has no room for more segments",
                       w->object);
    struct hash128 hash;
    bool shared = false;
    struct err own = {0};
    enum err_code rc = add_payload(w, kind, data, bytes, &hash, &shared, &own);
    if (rc != ERR_OK) {
        if (e != NULL)
            *e = own;
        return rc;
    }
    w->bytes_seen += bytes;
    w->order = mem_grow(w->order, w->order_count + 1, sizeof(*w->order));
    w->order[w->order_count++] = hash;
    if (ret_shared != NULL)
        *ret_shared = shared;
    return ERR_OK;
}

static void writer_free(struct memtier_writer *w)
{
    w->store->writer = NULL;
    if (w->fd >= 0)
        close(w->fd);
    free(w->object);
    free(w->file_name);
    free(w->path);
    free(w->fresh);
    free(w->order);
    free(w);
}

void memtier_writer_abort(struct memtier_writer **wp)
{
    struct memtier_writer *w = *wp;
    if (w == NULL)
        return;
    if (w->fd >= 0)
        unlink(w->path); /* if that fails the next writer's sweep does it */
    writer_free(w);
    *wp = NULL;
}

static enum err_code sync_directory(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, ERR_IO, "cannot open %s", path);
    int rc = fsync(fd), why = errno;
    close(fd);
    errno = why;
    /* Some file systems cannot sync a directory and say so; they order such things themselves. */
    return rc == 0 || why == EINVAL ? ERR_OK : err_set_errno(e, ERR_IO, "cannot sync %s", path);
}

static enum err_code sync_data(struct memtier_writer *w, struct err *e)
{
    if (w->fd < 0)
        return ERR_OK;
    if (ftruncate(w->fd, (off_t)w->file_bytes) != 0)
        return err_set_errno(e, ERR_IO, "cannot trim %s", w->path);
    if (fsync(w->fd) != 0)
        return err_set_errno(e, ERR_IO, "cannot sync %s", w->path);
    /* Serving reads it directly: our copy in the page cache is memory taken from the pools. */
    (void)posix_fadvise(w->fd, 0, 0, POSIX_FADV_DONTNEED);
    return sync_directory(w->store->data_dir, e);
}

/* The index that has the object, from the one that has it not. */
static struct store_index *index_with(struct memtier_writer *w, struct store_meta *meta,
                                      const struct hash128 *meta_hash)
{
    struct store_index *x = store_index_clone(w->store->index);
    if (w->fd >= 0) {
        uint32_t file = store_index_add_file(x, x->next_file_id++, w->file_name, w->file_bytes);
        for (size_t i = 0; i < w->fresh_count; i++) {
            w->fresh[i].file_idx = file;
            store_index_put_segment(x, &w->fresh[i]);
        }
    }
    uint32_t *idx = mem_array(w->order_count + 1, sizeof(*idx));
    for (size_t i = 0; i < w->order_count; i++) {
        idx[i] = store_index_find(x, w->order[i]);
        assert(idx[i] != STORE_NONE);
    }
    uint32_t meta_segment = meta_hash == NULL ? STORE_NONE : store_index_find(x, *meta_hash);
    store_index_put_object(x, w->object, meta, meta_segment, idx, w->order_count);
    free(idx);
    return x;
}

static enum err_code commit(struct memtier_writer *w, const void *meta, size_t meta_bytes,
                            struct err *e)
{
    struct hash128 meta_hash = {0};
    bool separate = meta_bytes > STORE_META_INLINE, shared = false;
    enum err_code rc = ERR_OK;
    if (w->failed)
        return refuse_failed(w, e);
    if (meta_bytes > STORE_META_MAX)
        return err_set(e, ERR_TOO_LARGE, "object %s: its description has %zu bytes", w->object,
                       meta_bytes);
    if (separate)
        rc = add_payload(w, MEMTIER_KIND_OTHER, meta, meta_bytes, &meta_hash, &shared, e);
    if (rc == ERR_OK)
        rc = sync_data(w, e);
    if (rc != ERR_OK)
        return rc;
    struct store_index *x =
        index_with(w, store_meta_new(meta, meta_bytes), separate ? &meta_hash : NULL);
    return store_publish(w->store, x, e);
}

enum err_code memtier_writer_commit(struct memtier_writer **wp, const void *meta, size_t meta_bytes,
                                    struct err *e)
{
    struct memtier_writer *w = *wp;
    enum err_code rc = commit(w, meta, meta_bytes, e);
    if (rc != ERR_OK) {
        memtier_writer_abort(wp);
        return rc;
    }
    writer_free(w);
    *wp = NULL;
    return ERR_OK;
}

/* ---- removal and gc ---- */

enum err_code memtier_store_remove(struct memtier_store *s, const char *object, struct err *e)
{
    enum err_code rc = store_check_writable(s, e);
    if (rc != ERR_OK)
        return rc;
    uint32_t at = store_index_find_object(s->index, object);
    if (at == STORE_NONE)
        return err_set(e, ERR_NOT_FOUND, "store %s has no object %s", s->dir, object);
    struct store_index *x = store_index_clone(s->index);
    store_index_drop_object(x, at);
    return store_publish(s, x, e);
}

/* Files are appended with growing ids and never reordered, so the id in the name finds them. */
static bool index_names_file(const struct store_index *x, const char *name)
{
    uint32_t id = (uint32_t)strtoul(name, NULL, 16);
    size_t lo = 0, hi = x->files_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (x->files[mid].id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < x->files_count && strcmp(x->files[lo].name, name) == 0;
}

static void remove_one(const char *dir, const char *name, uint64_t *files, uint64_t *bytes)
{
    char *path = mem_format("%s/%s", dir, name);
    struct stat st;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && unlink(path) == 0) {
        (*files)++;
        *bytes += (uint64_t)st.st_blocks * 512;
    }
    free(path);
}

enum err_code store_remove_orphans(struct memtier_store *s, uint64_t *ret_files,
                                   uint64_t *ret_bytes, struct err *e)
{
    /* Only names of our own making: a stranger's file is left alone. */
    DIR *d = opendir(s->data_dir);
    if (d == NULL)
        return err_set_errno(e, ERR_IO, "cannot list %s", s->data_dir);
    for (const struct dirent *ent = readdir(d); ent != NULL; ent = readdir(d)) {
        size_t len = strlen(ent->d_name);
        bool ours = len > 13 && ent->d_name[8] == '-' && strcmp(ent->d_name + len - 4, ".seg") == 0;
        if (ours && !index_names_file(s->index, ent->d_name))
            remove_one(s->data_dir, ent->d_name, ret_files, ret_bytes);
    }
    closedir(d);
    d = opendir(s->dir);
    if (d == NULL)
        return err_set_errno(e, ERR_IO, "cannot list %s", s->dir);
    for (const struct dirent *ent = readdir(d); ent != NULL; ent = readdir(d)) {
        if (strncmp(ent->d_name, "index.tmp.", 10) == 0)
            remove_one(s->dir, ent->d_name, ret_files, ret_bytes);
    }
    closedir(d);
    return ERR_OK;
}

struct span {
    uint64_t from, to;
};

static int span_order(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* Give back the bytes of dropped segments inside a file that lives on. Holes read as zeros, which
 * no live segment covers; doing it again is harmless, so a crash in between loses nothing. */
static uint64_t punch_gaps(const struct memtier_store *s, uint32_t file_idx)
{
    const struct store_index *x = s->index;
    struct span *live = mem_array(x->segments_count + 1, sizeof(*live));
    size_t count = 0;
    for (size_t i = 0; i < x->segments_count; i++) {
        const struct store_segment *seg = &x->segments[i];
        if (seg->file_idx == file_idx)
            live[count++] = (struct span){seg->offset, seg->offset + store_padded(seg->info.bytes)};
    }
    qsort(live, count, sizeof(*live), span_order);
    live[count] = (struct span){x->files[file_idx].bytes, 0};
    char *path = store_data_path(s, x->files[file_idx].name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    struct stat before = {0}, after = {0};
    uint64_t at = 0;
    if (fd >= 0 && fstat(fd, &before) == 0 &&
        (uint64_t)before.st_size >= x->files[file_idx].bytes) {
        for (size_t i = 0; i <= count; i++) {
            if (live[i].from > at)
                (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
                                (off_t)(live[i].from - at));
            at = BASE_MAX(at, live[i].to);
        }
        if (fstat(fd, &after) != 0)
            after = before;
    }
    if (fd >= 0)
        close(fd);
    free(path);
    free(live);
    return before.st_blocks > after.st_blocks ? (uint64_t)(before.st_blocks - after.st_blocks) * 512
                                              : 0;
}

enum err_code memtier_store_gc(struct memtier_store *s, struct memtier_gc_report *ret,
                               struct err *e)
{
    struct memtier_gc_report report = {0};
    enum err_code rc = store_check_writable(s, e);
    if (rc != ERR_OK)
        return rc;
    struct store_index *x = store_index_clone(s->index);
    store_index_sweep(x);
    bool changed =
        x->segments_count != s->index->segments_count || x->files_count != s->index->files_count;
    if (changed)
        rc = store_publish(s, x, e);
    else
        store_index_free(x);
    if (rc == ERR_OK)
        rc = store_remove_orphans(s, &report.files_removed, &report.bytes_removed, e);
    if (rc != ERR_OK)
        return rc;
    /* A loader may still be reading a dropped segment through an open file: unlinking leaves it
     * whole, a hole would not. */
    for (uint32_t i = 0; s->attached == 0 && i < s->index->files_count; i++)
        report.bytes_removed += punch_gaps(s, i);
    *ret = report;
    return ERR_OK;
}
