/* Writing GGUF files, old or new but never torn: a temporary file in the same directory, fsync,
 * rename. */
#include "experts/gguf_out.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum err_code gguf_out_open(struct gguf_out *o, const char *path, struct err *e)
{
    struct stat st;
    *o = (struct gguf_out){0};
    /* A rename over a device or a pipe would replace it: nobody means that. */
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "'%.200s' is not a regular file", path);
    o->path = mem_strdup(path);
    o->tmp_path = mem_format("%s.tmp.%ld", path, (long)getpid());
    int fd = open(o->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    o->f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (o->f)
        return ERR_OK;
    enum err_code rc = err_set_errno(e, ERR_IO, "cannot create '%.200s'", o->tmp_path);
    if (fd >= 0)
        close(fd);
    gguf_out_abort(o);
    return rc;
}

enum err_code gguf_out_write(struct gguf_out *o, const void *data, size_t len, struct err *e)
{
    if (fwrite(data, 1, len, o->f) != len)
        return err_set_errno(e, ERR_IO, "writing '%.200s'", o->tmp_path);
    o->at += len;
    return ERR_OK;
}

enum err_code gguf_out_pad(struct gguf_out *o, uint64_t position, struct err *e)
{
    static const uint8_t zeros[4096];
    if (position < o->at)
        return err_set(e, ERR_INTERNAL, "'%.200s': data was to go back to %llu from %llu", o->path,
                       (unsigned long long)position, (unsigned long long)o->at);
    enum err_code rc = ERR_OK;
    while (o->at < position && rc == ERR_OK)
        rc = gguf_out_write(o, zeros, (size_t)BASE_MIN(position - o->at, sizeof(zeros)), e);
    return rc;
}

enum err_code gguf_out_header(struct gguf_out *o, const void *header, size_t len,
                              uint64_t alignment, struct err *e)
{
    enum err_code rc = gguf_out_write(o, header, len, e);
    o->data_start = (len + alignment - 1) & ~(alignment - 1);
    return rc == ERR_OK ? gguf_out_pad(o, o->data_start, e) : rc;
}

static enum err_code sync_parent(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == path ? mem_strdup("/")
                : slash       ? mem_strndup(path, (size_t)(slash - path))
                              : mem_strdup(".");
    enum err_code rc = ERR_OK;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some file systems cannot sync a directory (EINVAL); then the rename is as safe as they make
     * it. */
    if (fd >= 0 && fsync(fd) != 0 && errno != EINVAL)
        rc = err_set_errno(e, ERR_IO, "cannot sync '%.200s'", dir);
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

enum err_code gguf_out_commit(struct gguf_out *o, struct err *e)
{
    if (fflush(o->f) != 0 || fsync(fileno(o->f)) != 0)
        return err_set_errno(e, ERR_IO, "writing '%.200s'", o->tmp_path);
    int rc = fclose(o->f);
    o->f = NULL;
    if (rc != 0)
        return err_set_errno(e, ERR_IO, "writing '%.200s'", o->tmp_path);
    if (rename(o->tmp_path, o->path) != 0)
        return err_set_errno(e, ERR_IO, "cannot rename '%.150s' to '%.150s'", o->tmp_path, o->path);
    free(o->tmp_path);
    o->tmp_path = NULL;
    return sync_parent(o->path, e);
}

void gguf_out_abort(struct gguf_out *o)
{
    if (o->f)
        fclose(o->f);
    if (o->tmp_path)
        unlink(o->tmp_path);
    free(o->tmp_path);
    free(o->path);
    *o = (struct gguf_out){0};
}
