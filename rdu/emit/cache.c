/* The object cache: <key>.so below one directory of ours. A file is an ELF object, then its hash
 * and a mark; dlopen does not mind the tail. What is loaded is exactly what was checked: the file
 * is read, its owner, mode and hash are tested, and the bytes go into a sealed memory file that
 * dlopen maps. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rdu/emit/emit.h"

#define TAIL_MARK "switchyard-obj1"
#define OBJECT_BYTES_MAX (64 * BASE_MIB)

struct tail {
    struct hash128 hash;
    char mark[16];
};

/* ---- keys ------------------------------------------------------------------------------------ */

/* The text holds the IR, shapes, numerics and emitter version; the rest is said here. */
struct hash128 emit_key(const struct emit_cc *cc, const struct buf *text)
{
    struct buf all = {0};
    buf_printf(&all, "%s\n", cc->identity ? cc->identity : "");
    for (uint32_t i = 0; i < cc->flags_count; i++)
        buf_printf(&all, "%s ", cc->flags[i]);
    buf_append(&all, text->data, text->len);
    struct hash128 h = hash128_of(all.data, all.len, EMIT_VERSION);
    buf_done(&all);
    return h;
}

static char *path_of(const struct emit_cache *c, struct hash128 key)
{
    char hex[33];
    hash128_format(key, hex);
    return mem_format("%s/%s.so", c->dir, hex);
}

/* ---- loading --------------------------------------------------------------------------------- */

static bool write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

void emit_unload(struct emit_object *o)
{
    if (o->handle == NULL)
        return;
    dlclose(o->handle);
    close(o->fd);
    o->handle = NULL;
}

enum err_code emit_load_bytes(const struct buf *object, struct emit_object *ret, struct err *e)
{
    int fd = memfd_create("switchyard-native", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set_errno(e, ERR_IO, "cannot make a memory file for an object");
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    void *handle = NULL;
    if (write_all(fd, object->data, object->len) &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0)
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    enum err_code rc = ERR_OK;
    if (handle == NULL) {
        const char *why = dlerror();
        rc = err_set(e, ERR_CORRUPT, "an object cannot be loaded: %s", why ? why : strerror(errno));
        close(fd);
        return rc;
    }
    *ret = (struct emit_object){handle, fd};
    return rc;
}

/* Ours alone to write, and whole. */
static const char *fault_of(int fd, struct buf *object)
{
    struct stat st;
    struct tail tail;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return "is no regular file";
    if (st.st_uid != geteuid())
        return "belongs to another user";
    if ((st.st_mode & 022) != 0)
        return "may be written by others";
    if (st.st_size < (off_t)sizeof(tail) || (uint64_t)st.st_size > OBJECT_BYTES_MAX)
        return "has no sensible size";
    size_t len = (size_t)st.st_size;
    char *data = mem_alloc(len);
    size_t got = 0;
    for (ssize_t n = 1; got < len && n > 0; got += n > 0 ? (size_t)n : 0)
        n = read(fd, data + got, len - got);
    buf_append(object, data, got);
    free(data);
    if (got != len)
        return "cannot be read";
    object->len -= sizeof(tail);
    memcpy(&tail, object->data + object->len, sizeof(tail));
    if (memcmp(tail.mark, TAIL_MARK, sizeof(tail.mark)) != 0 ||
        !hash128_equal(tail.hash, hash128_of(object->data, object->len, 0)))
        return "does not have the content it was stored with";
    return NULL;
}

enum err_code emit_cache_load(const struct emit_cache *c, struct hash128 key,
                              struct emit_object *ret, struct err *e)
{
    char *path = path_of(c, key);
    struct buf object = {0};
    enum err_code rc = ERR_OK;
    *ret = (struct emit_object){NULL, -1};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        const char *fault = fault_of(fd, &object);
        if (fault == NULL)
            rc = emit_load_bytes(&object, ret, e);
        else
            rc = err_set(e, ERR_CORRUPT, "the cached object %s %s", path, fault);
        futimens(fd, NULL); /* used just now; a refusal only costs it its place in the order */
        close(fd);
        if (rc != ERR_OK)
            unlink(path);
    } else if (errno != ENOENT && errno != ENOTDIR) {
        rc = err_set_errno(e, ERR_IO, "cannot open the cached object %s", path);
    }
    buf_done(&object);
    free(path);
    return rc;
}

/* ---- storing --------------------------------------------------------------------------------- */

struct entry {
    char name[40];
    uint64_t bytes;
    struct timespec used;
};

static int by_use(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    return x->used.tv_nsec < y->used.tv_nsec ? -1 : x->used.tv_nsec > y->used.tv_nsec;
}

static struct entry *list_entries(const struct emit_cache *c, size_t *ret_count,
                                  uint64_t *ret_bytes)
{
    struct entry *list = NULL;
    *ret_count = 0;
    *ret_bytes = 0;
    DIR *d = opendir(c->dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        struct stat st;
        size_t len = strlen(f->d_name);
        if (len != 35 || strcmp(f->d_name + 32, ".so") != 0 ||
            fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        list = mem_grow(list, *ret_count + 1, sizeof(*list));
        struct entry *n = &list[(*ret_count)++];
        memcpy(n->name, f->d_name, len + 1);
        n->bytes = (uint64_t)st.st_size;
        n->used = st.st_mtim;
        *ret_bytes += n->bytes;
    }
    if (d)
        closedir(d);
    return list;
}

/* Make room for `bytes` more: the longest unused go first. */
static void evict(const struct emit_cache *c, uint64_t bytes)
{
    size_t count;
    uint64_t sum;
    struct entry *list = list_entries(c, &count, &sum);
    if (count > 0)
        qsort(list, count, sizeof(*list), by_use);
    for (size_t i = 0; i < count && sum + bytes > c->max_bytes; i++) {
        char *path = mem_format("%s/%s", c->dir, list[i].name);
        if (unlink(path) == 0)
            sum -= list[i].bytes;
        free(path);
    }
    free(list);
}

enum err_code emit_cache_store(const struct emit_cache *c, struct hash128 key,
                               const struct buf *object, struct err *e)
{
    struct tail tail = {.hash = hash128_of(object->data, object->len, 0)};
    memcpy(tail.mark, TAIL_MARK, sizeof(tail.mark));
    struct buf all = {0};
    char *path = path_of(c, key);
    buf_append(&all, object->data, object->len);
    buf_append(&all, &tail, sizeof(tail));
    evict(c, all.len);
    enum err_code rc = ERR_OK;
    if (all.len > c->max_bytes)
        rc = err_set(e, ERR_TOO_LARGE, "an object of %zu bytes does not fit the cache of %llu",
                     all.len, (unsigned long long)c->max_bytes);
    if (rc == ERR_OK)
        rc = file_write_atomic(path, all.data, all.len, e);
    if (rc == ERR_OK)
        chmod(path, 0600);
    free(path);
    buf_done(&all);
    return rc;
}
