/* The device's own rate: a reader of one file that does nothing else, sharing no code with the
 * loader, so that a share of it means something. Direct reads through a ring of its own into a
 * registered buffer; where io_uring is forbidden there is no figure. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memtier/memtier.h"

#define DEPTH_MAX 64

struct memtier_device {
    struct io_uring ring;
    unsigned char *memory;
    size_t bytes;
    bool registered;
};

enum err_code memtier_device_open(uint64_t bytes_max, struct memtier_device **ret, struct err *e)
{
    struct memtier_device *d = mem_alloc(sizeof(*d));
    d->bytes = (size_t)((bytes_max + ((size_t)2 << 20) - 1) & ~(uint64_t)(((size_t)2 << 20) - 1));
    int rc = io_uring_queue_init(DEPTH_MAX, &d->ring, 0);
    if (rc < 0) {
        free(d);
        errno = -rc;
        return err_set_errno(e, ERR_UNSUPPORTED, "io_uring cannot be used");
    }
    d->memory = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d->memory == MAP_FAILED) {
        enum err_code code = err_set_errno(e, ERR_NO_MEMORY, "cannot map %zu bytes", d->bytes);
        d->memory = NULL;
        memtier_device_close(&d);
        return code;
    }
    (void)madvise(d->memory, d->bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < d->bytes; i += MEMTIER_ALIGN)
        d->memory[i] = 1;
    struct iovec v = {d->memory, d->bytes};
    d->registered = d->bytes <= (size_t)1 << 30 && io_uring_register_buffers(&d->ring, &v, 1) == 0;
    *ret = d;
    return ERR_OK;
}

void memtier_device_close(struct memtier_device **dp)
{
    struct memtier_device *d = *dp;
    if (d == NULL)
        return;
    io_uring_queue_exit(&d->ring);
    if (d->memory != NULL)
        (void)munmap(d->memory, d->bytes);
    free(d);
    *dp = NULL;
}

static void put_read(struct memtier_device *d, int fd, uint64_t at, unsigned bytes)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&d->ring);
    if (sqe == NULL)
        abort(); /* the ring is as long as reads may be in flight */
    if (d->registered)
        io_uring_prep_read_fixed(sqe, fd, d->memory + at, bytes, at, 0);
    else
        io_uring_prep_read(sqe, fd, d->memory + at, bytes, at);
    io_uring_sqe_set_data64(sqe, bytes);
}

/* Always waits for all that was begun: the buffer is the kernel's until then. */
static int read_all(struct memtier_device *d, int fd, uint64_t bytes, struct memtier_shape shape)
{
    uint64_t next = 0;
    unsigned flying = 0;
    int why = 0;
    while ((next < bytes && why == 0) || flying > 0) {
        while (next < bytes && why == 0 && flying < BASE_MIN(shape.depth, (uint32_t)DEPTH_MAX)) {
            unsigned n = (unsigned)BASE_MIN(bytes - next, (uint64_t)shape.block_bytes);
            put_read(d, fd, next, n);
            next += n;
            flying++;
        }
        struct io_uring_cqe *cqe;
        (void)io_uring_submit_and_wait(&d->ring, 1);
        while (io_uring_peek_cqe(&d->ring, &cqe) == 0) {
            if (cqe->res < 0 || (uint64_t)cqe->res != cqe->user_data)
                why = cqe->res < 0 ? -cqe->res : ENODATA;
            io_uring_cqe_seen(&d->ring, cqe);
            flying--;
        }
    }
    return why;
}

enum err_code memtier_device_read(struct memtier_device *d, const char *path, uint64_t bytes,
                                  struct memtier_shape shape, uint64_t *ret_ns, struct err *e)
{
    bytes = BASE_MIN((bytes + MEMTIER_ALIGN - 1) / MEMTIER_ALIGN * MEMTIER_ALIGN, d->bytes);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0)
        return err_set_errno(e, errno == EINVAL ? ERR_UNSUPPORTED : ERR_IO,
                             "%s cannot be read directly", path);
    uint64_t t0 = clock_ns();
    int why = read_all(d, fd, bytes, shape);
    *ret_ns = clock_ns() - t0;
    (void)close(fd);
    if (why == 0)
        return ERR_OK;
    errno = why;
    return err_set_errno(e, ERR_IO, "%s cannot be read", path);
}
