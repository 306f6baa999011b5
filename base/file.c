/* Whole files: bounded reads, atomic writes, directories, and the progress helper. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err_code code_of_open(void)
{
    return errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO;
}

static int open_retry(const char *path, int flags, mode_t mode)
{
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* ---- reading ---- */

static enum err_code read_all(int fd, const char *path, size_t max_bytes, struct buf *out,
                              struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set_errno(e, ERR_IO, "cannot stat %s", path);
    if (S_ISDIR(st.st_mode))
        return err_set(e, ERR_IO, "%s is a directory, not a file", path);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > max_bytes)
        return err_set(e, ERR_TOO_LARGE, "%s has %llu bytes, more than the %zu allowed", path,
                       (unsigned long long)st.st_size, max_bytes);
    buf_append(out, "", 0);
    char chunk[16 * 1024];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, ERR_IO, "cannot read %s", path);
        if (n == 0)
            return ERR_OK;
        if ((size_t)n > max_bytes - out->len)
            return err_set(e, ERR_TOO_LARGE, "%s has more than the %zu bytes allowed", path,
                           max_bytes);
        buf_append(out, chunk, (size_t)n);
    }
}

enum err_code file_read(const char *path, size_t max_bytes, struct buf *ret, struct err *e)
{
    int fd = open_retry(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set_errno(e, code_of_open(), "cannot open %s", path);
    struct buf out = {0};
    enum err_code rc = read_all(fd, path, max_bytes, &out, e);
    (void)close(fd);
    if (rc != ERR_OK) {
        buf_done(&out);
        return rc;
    }
    *ret = out;
    return ERR_OK;
}

/* ---- writing ---- */

static enum err_code write_all(int fd, const char *path, const void *data, size_t len,
                               struct err *e)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, ERR_IO, "cannot write %s", path);
        p += n;
        len -= (size_t)n;
    }
    return ERR_OK;
}

static enum err_code write_temporary(const char *tmp, const char *path, const void *data,
                                     size_t len, struct err *e)
{
    /* A file that exists keeps its mode: it may hold keys that others must not read. */
    struct stat st;
    mode_t mode = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? st.st_mode & 07777 : 0;
    (void)unlink(tmp); /* left by a process of the same number that died here */
    int fd = open_retry(tmp, O_WRONLY | O_CREAT | O_EXCL, mode != 0 ? 0600 : 0644);
    if (fd < 0)
        return err_set_errno(e, code_of_open(), "cannot create %s", tmp);
    enum err_code rc = ERR_OK;
    if (mode != 0 && fchmod(fd, mode) != 0)
        rc = err_set_errno(e, ERR_IO, "cannot set the mode of %s", tmp);
    if (rc == ERR_OK)
        rc = write_all(fd, tmp, data, len, e);
    if (rc == ERR_OK && fsync(fd) != 0)
        rc = err_set_errno(e, ERR_IO, "cannot sync %s", tmp);
    if (close(fd) != 0 && rc == ERR_OK)
        rc = err_set_errno(e, ERR_IO, "cannot close %s", tmp);
    return rc;
}

/* The rename is durable once its directory is. */
static enum err_code sync_directory_of(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL ? mem_strdup(".")
                              : mem_strndup(path, slash == path ? 1 : (size_t)(slash - path));
    int fd = open_retry(dir, O_RDONLY | O_DIRECTORY, 0);
    enum err_code rc = ERR_OK;
    /* EINVAL: file systems that cannot sync a directory have nothing to offer here. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        rc = err_set_errno(e, ERR_IO, "cannot sync directory %s", dir);
    if (fd >= 0)
        (void)close(fd);
    free(dir);
    return rc;
}

enum err_code file_write_atomic(const char *path, const void *data, size_t len, struct err *e)
{
    /* The thread's number: it is the PID for the first thread, and two threads never collide. */
    char *tmp = mem_format("%s.tmp.%d", path, (int)gettid());
    enum err_code rc = write_temporary(tmp, path, data, len, e);
    if (rc == ERR_OK && rename(tmp, path) != 0)
        rc = err_set_errno(e, ERR_IO, "cannot rename %s to %s", tmp, path);
    if (rc != ERR_OK)
        (void)unlink(tmp);
    else
        rc = sync_directory_of(path, e);
    free(tmp);
    return rc;
}

/* ---- directories ---- */

static enum err_code make_one(const char *path, struct err *e)
{
    if (mkdir(path, 0755) == 0)
        return ERR_OK;
    int saved = errno;
    struct stat st;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            return ERR_OK;
        return err_set(e, ERR_IO, "%s exists and is not a directory", path);
    }
    errno = saved;
    return err_set_errno(e, ERR_IO, "cannot make directory %s", path);
}

enum err_code file_mkdirs(const char *path, struct err *e)
{
    if (path[0] == '\0')
        return err_set(e, ERR_INVALID, "an empty path names no directory");
    char *copy = mem_strdup(path);
    enum err_code rc = ERR_OK;
    for (char *p = copy + 1; *p != '\0' && rc == ERR_OK; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        rc = make_one(copy, e);
        *p = '/';
    }
    if (rc == ERR_OK)
        rc = make_one(copy, e);
    free(copy);
    return rc;
}

/* ---- progress ---- */

bool progress_report(const struct progress *p, const char *what, uint64_t done, uint64_t total)
{
    return p == NULL || p->report == NULL || p->report(p->ctx, what, done, total);
}
