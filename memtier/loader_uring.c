/* Reads through io_uring. One ring, made and used by the loader thread alone: SINGLE_ISSUER and
 * DEFER_TASKRUN (completions are only processed when we wait, no interrupts of other work), stepped
 * down on kernels that do not know them. No SQPOLL, no IOPOLL: the first burns a core, the second
 * needs poll queues most devices lack. */
#include "memtier/loader.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct uring {
    struct io io;
    struct io_uring ring;
    int wake_fd;
    bool wake_armed;
    bool files; /* the table of registered files exists */
};

static struct uring *of(struct io *io)
{
    return (struct uring *)io;
}

static void uring_close(struct io *io)
{
    io_uring_queue_exit(&of(io)->ring);
    free(io);
}

/* The queue has more entries than reads may be in flight, so there always is one. */
static struct io_uring_sqe *next_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (sqe == NULL)
        abort();
    return sqe;
}

static void uring_submit(struct io *io, struct io_read *r)
{
    struct io_uring_sqe *sqe = next_sqe(of(io));
    bool fixed = r->slot >= 0 && of(io)->files;
    int fd = fixed ? r->slot : r->fd;
    if (r->write && r->buffer >= 0)
        io_uring_prep_write_fixed(sqe, fd, r->dst, r->bytes, r->offset, r->buffer);
    else if (r->write)
        io_uring_prep_write(sqe, fd, r->dst, r->bytes, r->offset);
    else if (r->buffer >= 0)
        io_uring_prep_read_fixed(sqe, fd, r->dst, r->bytes, r->offset, r->buffer);
    else
        io_uring_prep_read(sqe, fd, r->dst, r->bytes, r->offset);
    if (fixed)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, r);
}

static void arm_wake(struct uring *u)
{
    struct io_uring_sqe *sqe = next_sqe(u);
    io_uring_prep_poll_add(sqe, u->wake_fd, POLLIN);
    io_uring_sqe_set_data(sqe, u);
    u->wake_armed = true;
}

static struct io_read *reap(struct uring *u)
{
    struct io_read *done = NULL, **tail = &done;
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        void *data = io_uring_cqe_get_data(cqe);
        seen++;
        if (data == u) {
            u->wake_armed = false;
            continue;
        }
        if (cqe->user_data == LIBURING_UDATA_TIMEOUT)
            continue; /* how liburing waits with a timeout on kernels before 5.11 */
        struct io_read *r = data;
        r->result = cqe->res;
        r->next = NULL;
        *tail = r;
        tail = &r->next;
    }
    io_uring_cq_advance(&u->ring, seen);
    return done;
}

static struct io_read *uring_wait(struct io *io, uint64_t timeout_ns)
{
    struct uring *u = of(io);
    struct __kernel_timespec ts = {.tv_sec = (int64_t)(timeout_ns / 1000000000u),
                                   .tv_nsec = (long long)(timeout_ns % 1000000000u)};
    struct io_uring_cqe *cqe = NULL;
    if (!u->wake_armed)
        arm_wake(u);
    /* -ETIME and -EINTR only say that nothing came; anything else would show as a read that never
     * ends, and the requests in it are re-submitted by the next call. */
    (void)io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout_ns == UINT64_MAX ? NULL : &ts,
                                           NULL);
    return reap(u);
}

static int uring_attach_file(struct io *io, uint32_t slot, int fd)
{
    if (!of(io)->files)
        return EOPNOTSUPP;
    int rc = io_uring_register_files_update(&of(io)->ring, slot, &fd, 1);
    return rc < 0 ? -rc : 0;
}

static int uring_attach_buffer(struct io *io, uint32_t idx, void *addr, size_t bytes)
{
    struct iovec v = {addr, bytes};
    __u64 tag = 0;
    int rc = io_uring_register_buffers_update_tag(&of(io)->ring, idx, &v, &tag, 1);
    return rc < 0 ? -rc : 0;
}

static const struct io_ops uring_ops_plain = {
    .close = uring_close,
    .submit = uring_submit,
    .wait = uring_wait,
    .attach_file = uring_attach_file,
};
static const struct io_ops uring_ops_registered = {
    .close = uring_close,
    .submit = uring_submit,
    .wait = uring_wait,
    .attach_file = uring_attach_file,
    .attach_buffer = uring_attach_buffer,
};

/* Flags the kernel does not know give EINVAL: take the newest off, one at a time. */
static int setup(struct uring *u, unsigned entries)
{
    static const unsigned ladder[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int rc = -EINVAL;
    for (size_t i = 0; i < BASE_COUNT(ladder) && rc == -EINVAL; i++) {
        struct io_uring_params p = {.flags = ladder[i]};
        rc = io_uring_queue_init_params(entries, &u->ring, &p);
    }
    return rc;
}

enum err_code io_open_uring(const struct io_options *opt, struct io **ret, struct err *e)
{
    struct uring *u = mem_alloc(sizeof(*u));
    int rc = setup(u, opt->depth + 4);
    if (rc < 0) {
        free(u);
        errno = -rc;
        return err_set_errno(e, ERR_UNSUPPORTED, "io_uring cannot be used%s",
                             rc == -EPERM ? " (forbidden: seccomp, or kernel.io_uring_disabled)"
                                          : "");
    }
    u->wake_fd = opt->wake_fd;
    u->io.depth = opt->depth;
    u->files = opt->files > 0 && io_uring_register_files_sparse(&u->ring, opt->files) == 0;
    bool buffers =
        opt->buffers > 0 && io_uring_register_buffers_sparse(&u->ring, opt->buffers) == 0;
    u->io.ops = buffers ? &uring_ops_registered : &uring_ops_plain;
    *ret = &u->io;
    return ERR_OK;
}
