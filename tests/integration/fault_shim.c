/* Faults in the calls of an unchanged program, through LD_PRELOAD. A file of three 32-bit numbers,
 * named by FAULT_CONTROL and shared with the test, says what happens to calls on files of a store's
 * data folder:
 *
 *   [0] kind: 0 nothing, 1 reads fail with EIO, 2 reads end early, 3 reads are slow, 4 reads bring
 * other bytes, 5 writes fail with ENOSPC [1] calls to let pass before that; then every call is hit
 * until [2] is used up [2] calls to hit
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum kind { NOTHING, READ_ERROR, READ_SHORT, READ_SLOW, READ_GARBAGE, DISK_FULL };

static _Atomic int *control;

static void attach(void)
{
    const char *path = getenv("FAULT_CONTROL");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *p = mmap(NULL, 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    control = p == MAP_FAILED ? NULL : p;
    close(fd);
}

__attribute__((constructor)) static void start(void)
{
    attach();
}

static int is_data(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = 0;
    /* Only the store that the test spoils has such a name. */
    return strstr(path, "/data/") != NULL && strstr(path, ".seg") != NULL &&
           strstr(path, getenv("FAULT_FILE")) != NULL;
}

static enum kind hit(int fd, int write)
{
    int kind = control ? atomic_load(&control[0]) : NOTHING;
    if (kind == NOTHING || (kind == DISK_FULL) != write || !is_data(fd))
        return NOTHING;
    if (atomic_fetch_sub(&control[1], 1) > 0)
        return NOTHING;
    return atomic_fetch_sub(&control[2], 1) > 0 ? (enum kind)kind : NOTHING;
}

static void nap(void)
{
    const struct timespec t = {.tv_nsec = 300000000};
    nanosleep(&t, NULL);
}

typedef ssize_t read_fn(int, void *, size_t, off_t);
static ssize_t faulty_pread(int fd, void *buf, size_t n, off_t at)
{
    static read_fn *real;
    if (real == NULL)
        real = (read_fn *)dlsym(RTLD_NEXT, "pread64");
    enum kind k = hit(fd, 0);
    if (k == READ_ERROR) {
        errno = EIO;
        return -1;
    }
    if (k == READ_SHORT)
        return 0;
    if (k == READ_SLOW)
        nap();
    ssize_t got = real(fd, buf, n, at);
    if (k == READ_GARBAGE && got > 0)
        memset(buf, 0x5a, (size_t)got);
    return got;
}

ssize_t pread(int fd, void *buf, size_t n, off_t at)
{
    return faulty_pread(fd, buf, n, at);
}

ssize_t pread64(int fd, void *buf, size_t n, off_t at)
{
    return faulty_pread(fd, buf, n, at);
}

typedef ssize_t write_fn(int, const void *, size_t, off_t);
static ssize_t faulty_pwrite(int fd, const void *buf, size_t n, off_t at)
{
    static write_fn *real;
    if (real == NULL)
        real = (write_fn *)dlsym(RTLD_NEXT, "pwrite64");
    if (hit(fd, 1) == DISK_FULL) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, buf, n, at);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t at)
{
    return faulty_pwrite(fd, buf, n, at);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off_t at)
{
    return faulty_pwrite(fd, buf, n, at);
}

typedef ssize_t plain_write_fn(int, const void *, size_t);
ssize_t write(int fd, const void *buf, size_t n)
{
    static plain_write_fn *real;
    if (real == NULL)
        real = (plain_write_fn *)dlsym(RTLD_NEXT, "write");
    if (hit(fd, 1) == DISK_FULL) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, buf, n);
}
