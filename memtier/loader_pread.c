/* Reads through a few threads that each do one pread at a time: what works where io_uring is
 * forbidden. Whether the reads are direct or buffered is decided by how the loader opened the file.
 */
#include "memtier/loader.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 16

struct preads {
    struct io io;
    int wake_fd;
    struct ring *done;
    unsigned threads_count;
    pthread_t threads[THREADS_MAX];
    /* Guards the queue below. A condition rather than a ring: the readers sleep most of their life.
     */
    pthread_mutex_t mutex;
    pthread_cond_t more;
    struct io_read *head, *tail;
    bool stop;
};

static struct preads *of(struct io *io)
{
    return (struct preads *)io;
}

static struct io_read *take(struct preads *p)
{
    pthread_mutex_lock(&p->mutex);
    while (p->head == NULL && !p->stop)
        pthread_cond_wait(&p->more, &p->mutex);
    struct io_read *r = p->head;
    if (r != NULL)
        p->head = r->next;
    pthread_mutex_unlock(&p->mutex);
    return r;
}

static void *reader(void *arg)
{
    struct preads *p = arg;
    for (struct io_read *r = take(p); r != NULL; r = take(p)) {
        ssize_t n = r->write ? pwrite(r->fd, r->dst, r->bytes, (off_t)r->offset)
                             : pread(r->fd, r->dst, r->bytes, (off_t)r->offset);
        r->result = n < 0 ? -errno : (int32_t)n;
        /* Never full: it has a place for every read that may be in flight. */
        (void)ring_push(p->done, r);
    }
    return NULL;
}

static void preads_close(struct io *io)
{
    struct preads *p = of(io);
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->mutex);
    for (unsigned i = 0; i < p->threads_count; i++)
        thread_join(p->threads[i]);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->mutex);
    ring_close(&p->done);
    free(p);
}

static void preads_submit(struct io *io, struct io_read *r)
{
    struct preads *p = of(io);
    r->next = NULL;
    pthread_mutex_lock(&p->mutex);
    if (p->head == NULL)
        p->head = r;
    else
        p->tail->next = r;
    p->tail = r;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->mutex);
}

static struct io_read *preads_wait(struct io *io, uint64_t timeout_ns)
{
    struct preads *p = of(io);
    struct pollfd fds[2] = {{.fd = p->wake_fd, .events = POLLIN},
                            {.fd = ring_fd(p->done), .events = POLLIN}};
    struct timespec ts = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                          .tv_nsec = (long)(timeout_ns % 1000000000u)};
    if (ring_count(p->done) == 0)
        (void)ppoll(fds, 2, timeout_ns == UINT64_MAX ? NULL : &ts, NULL);
    ring_drain_fd(p->done);
    struct io_read *done = NULL, **tail = &done;
    for (struct io_read *r = ring_pop(p->done); r != NULL; r = ring_pop(p->done)) {
        r->next = NULL;
        *tail = r;
        tail = &r->next;
    }
    return done;
}

static const struct io_ops preads_ops = {
    .close = preads_close,
    .submit = preads_submit,
    .wait = preads_wait,
};

enum err_code io_open_pread(const struct io_options *opt, struct io **ret, struct err *e)
{
    struct preads *p = mem_alloc(sizeof(*p));
    p->io = (struct io){&preads_ops, BASE_MIN(opt->depth, (unsigned)THREADS_MAX)};
    p->wake_fd = opt->wake_fd;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->more, NULL);
    enum err_code rc = ring_open(&p->done, p->io.depth + 1, e);
    while (rc == ERR_OK && p->threads_count < p->io.depth) {
        char name[24];
        snprintf(name, sizeof(name), "mem-read-%u", p->threads_count % THREADS_MAX);
        rc = thread_start(&p->threads[p->threads_count], name, reader, p, e);
        if (rc == ERR_OK)
            p->threads_count++;
    }
    /* Fewer threads than wanted read more slowly, but they read. */
    if (rc != ERR_OK && p->threads_count == 0) {
        preads_close(&p->io);
        return rc;
    }
    *ret = &p->io;
    return ERR_OK;
}
