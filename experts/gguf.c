/* GGUF files: opening, finding the siblings of a split set, and reading tensor bytes with pread.
 * The header is read, not mapped: a file that another program cuts short while we look at it is
 * then an error and not a SIGBUS. */
#include "experts/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW_BYTES_FIRST ((size_t)1 << 20)
#define LABEL_BYTES_MAX 200

void gguf_close(struct gguf **gp)
{
    struct gguf *g = *gp;
    if (!g)
        return;
    for (size_t i = 0; i < g->kv_count; i++)
        free(g->kv[i].stride);
    for (size_t i = 0; i < g->files_count; i++)
        if (g->files[i].fd >= 0)
            close(g->files[i].fd);
    free(g->files);
    free(g->kv);
    free(g->kv_index);
    free(g->tensors);
    free(g->tensor_index);
    arena_done(&g->names);
    free(g->header);
    free(g->label);
    free(g);
    *gp = NULL;
}

enum err_code gguf_parse(const void *data, size_t len, uint64_t file_bytes, const char *label,
                         struct gguf **ret, struct err *e)
{
    struct err local;
    e = e ? e : &local;
    if (file_bytes < len)
        file_bytes = len;
    size_t wanted = 0;
    enum err_code rc = gguf_scan(data, len, file_bytes, label, &wanted, ret, e);
    if (rc == ERR_BUSY)
        return err_set(e, ERR_CORRUPT, "%s: the header ends early, after %zu bytes", label, len);
    return rc;
}

/* The end of a long path says more than its start, and messages are of limited length. */
static const char *short_label(const char *path, char out[LABEL_BYTES_MAX + 4])
{
    size_t n = strlen(path);
    if (n <= LABEL_BYTES_MAX)
        return path;
    memcpy(out, "...", 3);
    memcpy(out + 3, path + n - LABEL_BYTES_MAX + 3, LABEL_BYTES_MAX - 3 + 1);
    return out;
}

static enum err_code read_at(int fd, void *dst, size_t len, uint64_t offset, const char *label,
                             struct err *e)
{
    uint8_t *p = dst;
    while (len > 0) {
        ssize_t n = pread(fd, p, BASE_MIN(len, (size_t)1 << 30), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, ERR_IO, "%s: reading at offset %llu", label,
                                 (unsigned long long)offset);
        if (n == 0)
            return err_set(e, ERR_CORRUPT, "%s: the file became shorter while it was read", label);
        p += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

/* Read a growing window until the header is whole. */
static enum err_code scan_file(int fd, uint64_t file_bytes, const char *label, struct gguf **ret,
                               struct err *e)
{
    size_t window = WINDOW_BYTES_FIRST;
    for (;;) {
        size_t len = (size_t)BASE_MIN((uint64_t)window, file_bytes);
        uint8_t *data = malloc(len ? len : 1);
        if (!data)
            return err_set(e, ERR_NO_MEMORY, "%s: no memory for a header of %zu bytes", label, len);
        enum err_code rc = read_at(fd, data, len, 0, label, e);
        size_t wanted = 0;
        if (rc == ERR_OK)
            rc = gguf_scan(data, len, file_bytes, label, &wanted, ret, e);
        free(data);
        if (rc != ERR_BUSY)
            return rc;
        /* `wanted` is beyond the window, so this ends; HEADER_BYTES_MAX bounds it. */
        window = BASE_MIN(BASE_MAX(window * 4, wanted), (size_t)GGUF_HEADER_BYTES_MAX);
    }
}

/* Open one file and parse its own header; *ret holds the descriptor. */
static enum err_code open_one(const char *path, struct gguf **ret, struct err *e)
{
    char cut[LABEL_BYTES_MAX + 4];
    const char *label = short_label(path, cut);
    /* Non-blocking so that a FIFO of that name cannot hang us. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set_errno(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "cannot open '%s'",
                             label);
    struct stat st;
    enum err_code rc = ERR_OK;
    if (fstat(fd, &st) != 0)
        rc = err_set_errno(e, ERR_IO, "%s: stat", label);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, ERR_INVALID, "%s is not a regular file", label);
    struct gguf *g = NULL;
    if (rc == ERR_OK)
        rc = scan_file(fd, (uint64_t)st.st_size, label, &g, e);
    if (rc != ERR_OK) {
        close(fd);
        return rc;
    }
    g->files = mem_array(1, sizeof(*g->files));
    g->files_count = 1;
    g->files[0].fd = fd;
    g->files[0].data_offset = (g->header_len + g->alignment - 1) & ~(g->alignment - 1);
    *ret = g;
    return ERR_OK;
}

/* ---- split sets ---- */

struct split {
    uint64_t number, count;
};

static enum err_code read_split(const struct gguf *g, struct split *ret, struct err *e)
{
    *ret = (struct split){0, 1};
    if (!gguf_has(g, "split.count"))
        return ERR_OK;
    enum err_code rc = gguf_get_u64(g, "split.count", &ret->count, e);
    if (rc == ERR_OK && gguf_has(g, "split.no"))
        rc = gguf_get_u64(g, "split.no", &ret->number, e);
    if (rc != ERR_OK)
        return rc;
    if (ret->count == 0 || ret->count > GGUF_SPLITS_MAX || ret->number >= ret->count)
        return err_set(e, ERR_CORRUPT, "%s: split.no %llu of split.count %llu (at most %u files)",
                       g->label, (unsigned long long)ret->number, (unsigned long long)ret->count,
                       GGUF_SPLITS_MAX);
    return ERR_OK;
}

/* ".../x-00001-of-00003.gguf" -> the name of file `number` (from 0); NULL if it is not named so. */
static char *sibling_path(const char *path, uint64_t number, uint64_t count)
{
    char tail[40];
    snprintf(tail, sizeof(tail), "-%05u-of-%05u.gguf", 1u, (unsigned)count);
    size_t n = strlen(path), t = strlen(tail);
    if (n < t || strcmp(path + n - t, tail) != 0)
        return NULL;
    return mem_format("%.*s-%05u-of-%05u.gguf", (int)(n - t), path, (unsigned)number + 1,
                      (unsigned)count);
}

static bool is_split_key(const struct gguf_kv *kv)
{
    return kv->key_len > 6 && memcmp(kv->key, "split.", 6) == 0;
}

/* One header as if the set had never been split: the first file's keys but those about splitting,
 * all tensors in order with offsets in one data section. */
static enum err_code join_headers(struct gguf *const *part, size_t count, struct gguf **ret,
                                  struct err *e)
{
    const struct gguf *first = part[0];
    uint64_t keys = 0, tensors = 0, offset = 0;
    for (size_t i = 0; i < first->kv_count; i++)
        keys += !is_split_key(&first->kv[i]);
    for (size_t p = 0; p < count; p++)
        tensors += part[p]->tensors_count;
    struct buf h = {0};
    gguf_put_start(&h, tensors, keys);
    for (size_t i = 0; i < first->kv_count; i++)
        if (!is_split_key(&first->kv[i]))
            gguf_put_kv(&h, &first->kv[i]);
    enum err_code rc = ERR_OK;
    for (size_t p = 0; p < count && rc == ERR_OK; p++) {
        for (size_t i = 0; i < part[p]->tensors_count; i++) {
            const struct gguf_tensor *t = &part[p]->tensors[i];
            gguf_put_tensor(&h, t, t->type, offset);
            /* Cannot overflow: every size was checked against its file, and there are few files. */
            offset += (t->bytes + first->alignment - 1) & ~(first->alignment - 1);
        }
        if (h.len > GGUF_HEADER_BYTES_MAX)
            rc = err_set(e, ERR_UNSUPPORTED, "%s: the header of the set is too long", first->label);
    }
    if (rc == ERR_OK)
        rc = gguf_parse(h.data, h.len, UINT64_MAX, first->label, ret, e);
    buf_done(&h);
    return rc;
}

/* Give the joined header the files of its parts: descriptors, and where each tensor really is. */
static void adopt_files(struct gguf *g, struct gguf *const *part, size_t count)
{
    g->files = mem_array(count, sizeof(*g->files));
    g->files_count = count;
    size_t k = 0;
    for (size_t p = 0; p < count; p++) {
        g->files[p] = part[p]->files[0];
        part[p]->files[0].fd = -1;
        for (size_t i = 0; i < part[p]->tensors_count; i++, k++) {
            g->tensors[k].offset = part[p]->tensors[i].offset;
            g->tensors[k].split_idx = (uint32_t)p;
        }
    }
}

static enum err_code open_siblings(const char *path, struct gguf **part, uint64_t count,
                                   struct err *e)
{
    for (uint64_t p = 1; p < count; p++) {
        char *name = sibling_path(path, p, count);
        if (!name)
            return err_set(
                e, ERR_INVALID,
                "%s says it is one of %llu files, but is not named ...-00001-of-%05u.gguf; "
                "give the files of a split model their original names",
                part[0]->label, (unsigned long long)count, (unsigned)count);
        enum err_code rc = open_one(name, &part[p], e);
        free(name);
        if (rc != ERR_OK)
            return err_wrap(e, "file %llu of %llu of a split model", (unsigned long long)p + 1,
                            (unsigned long long)count);
        struct split sp;
        rc = read_split(part[p], &sp, e);
        if (rc != ERR_OK)
            return rc;
        if (sp.count != count || sp.number != p)
            return err_set(
                e, ERR_CORRUPT, "%s: says it is file %llu of %llu, expected %llu of %llu",
                part[p]->label, (unsigned long long)sp.number + 1, (unsigned long long)sp.count,
                (unsigned long long)p + 1, (unsigned long long)count);
    }
    return ERR_OK;
}

static enum err_code check_split_total(const struct gguf *first, const struct gguf *joined,
                                       struct err *e)
{
    uint64_t total;
    if (!gguf_has(first, "split.tensors.count"))
        return ERR_OK;
    enum err_code rc = gguf_get_u64(first, "split.tensors.count", &total, e);
    if (rc == ERR_OK && total != joined->tensors_count)
        rc = err_set(e, ERR_CORRUPT, "%s: split.tensors.count is %llu, the files hold %zu",
                     first->label, (unsigned long long)total, joined->tensors_count);
    return rc;
}

enum err_code gguf_open(const char *path, struct gguf **ret, struct err *e)
{
    struct err local;
    e = e ? e : &local;
    struct gguf *first = NULL;
    enum err_code rc = open_one(path, &first, e);
    if (rc != ERR_OK)
        return rc;
    struct split sp;
    rc = read_split(first, &sp, e);
    if (rc == ERR_OK && sp.count == 1) {
        *ret = first;
        return ERR_OK;
    }
    if (rc == ERR_OK && sp.number != 0)
        rc = err_set(e, ERR_INVALID, "%s is file %llu of a split model; name the first one",
                     first->label, (unsigned long long)sp.number + 1);
    if (rc != ERR_OK) {
        gguf_close(&first);
        return rc;
    }
    struct gguf **part = mem_array((size_t)sp.count, sizeof(struct gguf *));
    struct gguf *joined = NULL;
    part[0] = first;
    rc = open_siblings(path, part, sp.count, e);
    if (rc == ERR_OK)
        rc = join_headers(part, (size_t)sp.count, &joined, e);
    if (rc == ERR_OK)
        rc = check_split_total(first, joined, e);
    if (rc == ERR_OK) {
        adopt_files(joined, part, (size_t)sp.count);
        *ret = joined;
    } else {
        gguf_close(&joined);
    }
    for (uint64_t p = 0; p < sp.count; p++)
        gguf_close(&part[p]);
    free(part);
    return rc;
}

enum err_code gguf_read_range(const struct gguf *g, const struct gguf_tensor *t, uint64_t from,
                              size_t len, void *dst, struct err *e)
{
    if (!g->files)
        return err_set(e, ERR_INTERNAL, "%s: the tensors of a parsed header have no file",
                       g->label);
    const struct gguf_file *f = &g->files[t->split_idx];
    enum err_code rc = read_at(f->fd, dst, len, f->data_offset + t->offset + from, g->label, e);
    return rc == ERR_OK ? ERR_OK : err_wrap(e, "tensor '%s'", t->name);
}

enum err_code gguf_read_tensor(const struct gguf *g, const struct gguf_tensor *t, void *dst,
                               struct err *e)
{
    return gguf_read_range(g, t, 0, (size_t)t->bytes, dst, e);
}
