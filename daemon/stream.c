/* Suspended connections and the thread that watches them.
 *
 * Who wakes whom: the engine publishes and calls stream_notify, which pushes the request on a ring
 * (once until it is taken out again). The stream thread takes it out and, under the slot's lock,
 * resumes the connection or notes `woken`. The HTTP thread clears `woken` before it looks for news,
 * and suspends under the same lock only if it is still clear: nothing published is ever slept
 * through. */
#include "daemon/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "daemon/json_out.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#define TICK_MS 200
#define COMMENT_NS 1000000000ull /* an idle stream says something once a second */
#define GONE_NS 5000000000ull    /* the engine lets go within one token, if it can */
#define EVENTS 64

struct stream {
    struct streams *hub;
    struct lock lock;                  /* guards the fields down to `orphan` */
    struct MHD_Connection *connection; /* NULL = none: free slot, or orphan */
    struct api_call *call;             /* owned; the pointer changes under the lock only */
    uint32_t generation;
    bool whole; /* resume only when the call is done */
    bool suspended, woken, gone, comment_due, aborted;
    bool orphan;      /* the connection is finished, the engine is not */
    uint64_t idle_ns; /* since when suspended without a sign of life */
    uint64_t gone_ns;

    /* HTTP thread's, then whoever ends the call. */
    struct http_record record;
    struct err error;
    int fd;
    struct buf out; /* bytes for the client, from out_from */
    size_t out_from;
    bool finished;
    uint32_t tenths;          /* of the load, as last told */
    struct stream *next_free; /* guarded by hub->lock */
};

struct streams {
    struct server *server;
    struct stream *slots;
    size_t capacity;
    struct lock lock; /* guards the free list; taken at the ends of a call, never per token */
    struct stream *free_list;
    atomic_size_t count;
    struct ring *ready;   /* of struct request *, each with a reference */
    atomic_bool overflow; /* the ring was full once: look at every slot */
    atomic_bool stop;
    int epoll;
    pthread_t thread;
    void (*tick)(void *ctx); /* of the house around, once a second */
    void *tick_ctx;
};

/* ---- ending a call -------------------------------------------------------------------------- */

static int status_of(const struct api_call *call, const struct http_record *rec, struct err *e)
{
    if (call == NULL || !api_call_done(call) || rec->status != 200)
        return rec->status;
    return api_call_outcome(call, e) == ERR_OK ? 200 : err_http_status(e->code);
}

static void put_request_line(const struct http_record *rec, const struct api_call *call, int status,
                             const struct err *e, struct buf *line)
{
    logger_begin(line, LOG_INFO, "request");
    buf_puts(line, ",\"request_id\":");
    json_put_str(line, rec->request_id);
    buf_printf(line, ",\"id\":");
    json_put_str(line, call != NULL ? call->id : NULL);
    buf_puts(line, ",\"method\":");
    json_put_str(line, rec->method);
    buf_puts(line, ",\"path\":");
    json_put_str(line, rec->path);
    buf_printf(line, ",\"status\":%d,\"stream\":%s,\"model\":", status,
               rec->stream ? "true" : "false");
    json_put_str(line, rec->model[0] != 0 ? rec->model : NULL);
    buf_puts(line, ",\"total_ms\":");
    json_put_ms(line, clock_ns() - rec->received_ns);
    if (call != NULL) {
        buf_puts(line, ",");
        api_put_account(call, line);
    }
    if (e != NULL && e->code != ERR_OK) {
        buf_puts(line, ",\"error\":");
        json_put_str(line, err_code_name(e->code));
        buf_puts(line, ",\"message\":");
        json_put_str(line, e->msg);
    }
}

void http_record_end(struct server *s, const struct http_record *rec, const struct api_call *call,
                     const struct err *e)
{
    struct err outcome = {0};
    int status = status_of(call, rec, &outcome);
    metrics_note_request(s->metrics, call, status);
    if (s->log == NULL || !s->conf->log_requests)
        return;
    struct buf line = {0};
    put_request_line(rec, call, status, e != NULL && e->code != ERR_OK ? e : &outcome, &line);
    logger_send(s->log, &line);
}

/* The slot goes back to the free list. Its call was taken out under the lock, so that nobody else
 * ends it too. */
static void stream_end(struct stream *s, struct api_call *call)
{
    struct streams *h = s->hub;
    http_record_end(h->server, &s->record, call, &s->error);
    api_call_close(&call);
    buf_done(&s->out);
    lock_take(&h->lock);
    s->next_free = h->free_list;
    h->free_list = s;
    lock_drop(&h->lock);
    atomic_fetch_sub(&h->count, 1);
}

/* Under the slot's lock: the call if it can be ended now, NULL otherwise. */
static struct api_call *take_finished(struct stream *s)
{
    struct api_call *call = s->call;
    if (!s->orphan || call == NULL)
        return NULL;
    if (!api_call_idle(call))
        return NULL;
    s->call = NULL;
    s->orphan = false;
    s->generation++;
    return call;
}

/* ---- the stream thread ---------------------------------------------------------------------- */

/* Under the slot's lock. */
static void resume(struct stream *s)
{
    s->woken = true;
    if (!s->suspended || s->connection == NULL)
        return;
    s->suspended = false;
    MHD_resume_connection(s->connection);
}

/* Under the slot's lock: a whole answer has nothing to do before it is whole, and a client that
 * hung up is let go when the engine has let go, so that the account is complete. */
static bool worth_waking(const struct stream *s)
{
    bool wait_for_done = (s->whole || s->gone) && !s->aborted;
    return !wait_for_done || api_call_done(s->call);
}

static bool slot_has(const struct stream *s, const struct request *r)
{
    for (size_t i = 0; s->call != NULL && i < s->call->requests_count; i++)
        if (s->call->requests[i] == r)
            return true;
    return false;
}

static void look_at(struct stream *s, const struct request *r)
{
    struct api_call *finished = NULL;
    lock_take(&s->lock);
    if (s->call != NULL && (r == NULL || slot_has(s, r))) {
        finished = take_finished(s);
        if (finished == NULL && worth_waking(s))
            resume(s);
    }
    lock_drop(&s->lock);
    if (finished != NULL)
        stream_end(s, finished);
}

static void take_ready(struct streams *h)
{
    struct request *r;
    ring_drain_fd(h->ready);
    while ((r = ring_pop(h->ready)) != NULL) {
        /* Exchange, not store: reading the engine's `true` orders what it published before this
         * look. */
        atomic_exchange(&r->notified, false);
        look_at(r->owner, r);
        request_unref(&r);
    }
    if (atomic_exchange(&h->overflow, false))
        for (size_t i = 0; i < h->capacity; i++)
            look_at(&h->slots[i], NULL);
}

/* Engine thread. Never blocks. */
static void stream_notify(struct request *r)
{
    struct streams *h = ((struct stream *)r->owner)->hub;
    if (atomic_exchange(&r->notified, true))
        return;
    request_ref(r);
    if (ring_push(h->ready, r))
        return;
    atomic_store(&r->notified, false);
    atomic_store(&h->overflow, true);
    ring_wake(h->ready);
    request_unref(&r);
}

static void client_hung_up(struct streams *h, uint64_t key)
{
    struct stream *s = &h->slots[key & 0xffffffff];
    lock_take(&s->lock);
    /* Closing right behind the last byte is how a well-served client leaves: with all tokens made
     * there is nothing to cancel, and whether the bytes went out is for the connection's end to
     * say. */
    if (s->generation == (uint32_t)(key >> 32) && s->connection != NULL && !s->gone &&
        !api_call_done(s->call)) {
        s->gone = true;
        s->gone_ns = clock_ns();
        api_call_cancel(s->call);
        if (worth_waking(s))
            resume(s);
    }
    lock_drop(&s->lock);
}

/* Under the slot's lock. */
static void tick_slot(struct stream *s, uint64_t now)
{
    if (s->connection == NULL || !s->suspended)
        return;
    if (s->gone && now - s->gone_ns > GONE_NS) {
        s->aborted = true;
        resume(s);
    } else if (!s->whole && !s->gone && now - s->idle_ns > COMMENT_NS) {
        s->comment_due = true;
        resume(s);
    }
}

static void tick_slots(struct streams *h, uint64_t now)
{
    for (size_t i = 0; atomic_load(&h->count) > 0 && i < h->capacity; i++) {
        struct stream *s = &h->slots[i];
        lock_take(&s->lock);
        tick_slot(s, now);
        lock_drop(&s->lock);
    }
}

static void *streams_main(void *arg)
{
    struct streams *h = arg;
    struct epoll_event events[EVENTS];
    uint64_t last_tick = clock_ns(), last_second = last_tick;
    while (!atomic_load(&h->stop)) {
        int n = epoll_wait(h->epoll, events, EVENTS, TICK_MS);
        for (int i = 0; i < n; i++)
            if (events[i].data.u64 != UINT64_MAX)
                client_hung_up(h, events[i].data.u64);
        take_ready(h);
        uint64_t now = clock_ns();
        if (now - last_tick > TICK_MS * 1000000ull) {
            tick_slots(h, now);
            last_tick = now;
        }
        if (h->tick != NULL && now - last_second > 1000000000ull) {
            h->tick(h->tick_ctx);
            last_second = now;
        }
    }
    return NULL;
}

/* ---- the table ------------------------------------------------------------------------------ */

static void streams_free(struct streams *h)
{
    struct request *r;
    while (h->ready != NULL && (r = ring_pop(h->ready)) != NULL)
        request_unref(&r);
    ring_close(&h->ready);
    if (h->epoll >= 0)
        close(h->epoll);
    for (size_t i = 0; i < h->capacity; i++)
        lock_done(&h->slots[i].lock);
    lock_done(&h->lock);
    free(h->slots);
    free(h);
}

static enum err_code open_descriptors(struct streams *h, struct err *e)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (h->epoll < 0)
        return err_set_errno(e, ERR_IO, "cannot make an epoll set");
    enum err_code code = ring_open(&h->ready, h->capacity * 2, e);
    if (code != ERR_OK)
        return code;
    if (epoll_ctl(h->epoll, EPOLL_CTL_ADD, ring_fd(h->ready), &ev) != 0)
        return err_set_errno(e, ERR_IO, "cannot watch the ready ring");
    return ERR_OK;
}

enum err_code streams_open(struct server *s, size_t capacity, void (*tick)(void *ctx), void *ctx,
                           struct streams **ret, struct err *e)
{
    struct streams *h = mem_alloc(sizeof *h);
    h->server = s;
    h->tick = tick;
    h->tick_ctx = ctx;
    h->capacity = capacity;
    h->epoll = -1;
    h->slots = mem_array(capacity, sizeof *h->slots);
    lock_init(&h->lock, LOCK_RANK_SERVER, "stream table");
    for (size_t i = capacity; i-- > 0;) {
        h->slots[i].hub = h;
        lock_init(&h->slots[i].lock, LOCK_RANK_SERVER, "stream");
        h->slots[i].next_free = h->free_list;
        h->free_list = &h->slots[i];
    }
    enum err_code code = open_descriptors(h, e);
    if (code == ERR_OK)
        code = thread_start(&h->thread, "streams", streams_main, h, e);
    if (code != ERR_OK) {
        streams_free(h);
        return code;
    }
    *ret = h;
    return ERR_OK;
}

void streams_close(struct streams **hp)
{
    struct streams *h = *hp;
    *hp = NULL;
    if (h == NULL)
        return;
    atomic_store(&h->stop, true);
    ring_wake(h->ready);
    thread_join(h->thread);
    take_ready(h);
    for (size_t i = 0; i < h->capacity; i++) {
        struct api_call *call = h->slots[i].call;
        h->slots[i].call = NULL;
        if (call != NULL)
            stream_end(&h->slots[i], call);
    }
    streams_free(h);
}

size_t streams_count(const struct streams *h)
{
    return atomic_load(&h->count);
}

void streams_cancel(struct streams *h)
{
    for (size_t i = 0; i < h->capacity; i++) {
        lock_take(&h->slots[i].lock);
        if (h->slots[i].call != NULL)
            api_call_cancel(h->slots[i].call);
        lock_drop(&h->slots[i].lock);
    }
}

void streams_abort(struct streams *h)
{
    for (size_t i = 0; i < h->capacity; i++) {
        struct stream *s = &h->slots[i];
        lock_take(&s->lock);
        if (s->connection != NULL) {
            s->gone = s->aborted = true;
            resume(s);
        }
        lock_drop(&s->lock);
    }
}

/* ---- one stream, on its HTTP thread --------------------------------------------------------- */

static struct stream *take_slot(struct streams *h)
{
    lock_take(&h->lock);
    struct stream *s = h->free_list;
    if (s != NULL)
        h->free_list = s->next_free;
    lock_drop(&h->lock);
    return s;
}

static int socket_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info != NULL ? info->connect_fd : -1;
}

/* A socket that cannot be watched only costs the early notice of a hang-up. */
static void watch_socket(struct stream *s)
{
    struct epoll_event ev = {
        .events = EPOLLRDHUP | EPOLLONESHOT,
        .data.u64 = (uint64_t)s->generation << 32 | (uint64_t)(s - s->hub->slots),
    };
    if (s->fd >= 0 && epoll_ctl(s->hub->epoll, EPOLL_CTL_ADD, s->fd, &ev) != 0)
        s->fd = -1;
}

enum err_code stream_open(struct streams *h, struct api_call *call,
                          struct MHD_Connection *connection, const struct http_record *rec,
                          struct stream **ret, struct err *e)
{
    struct stream *s = take_slot(h);
    if (s == NULL)
        return err_set(e, ERR_QUEUE_FULL, "all %zu places for requests are taken", h->capacity);
    atomic_fetch_add(&h->count, 1);
    s->record = *rec;
    s->error = (struct err){0};
    s->fd = socket_of(connection);
    s->out_from = 0;
    s->finished = false;
    s->tenths = 0;
    lock_take(&s->lock);
    s->connection = connection;
    s->call = call;
    s->whole = !call->options.stream;
    s->suspended = s->woken = s->gone = s->comment_due = s->aborted = s->orphan = false;
    s->idle_ns = clock_ns();
    lock_drop(&s->lock);
    watch_socket(s);
    *ret = s;
    return ERR_OK;
}

struct api_call *stream_call(struct stream *s)
{
    return s->call;
}

enum err_code stream_submit(struct stream *s, uint32_t *ret_retry_after_s, struct err *e)
{
    lock_take(&s->lock);
    bool gone = s->gone; /* hung up while its prompt was being tokenised */
    lock_drop(&s->lock);
    if (gone)
        return err_set(e, ERR_CANCELLED, "the client hung up");
    enum err_code code = api_call_submit(s->call, stream_notify, s, ret_retry_after_s, e);
    lock_take(&s->lock);
    gone = code == ERR_OK && s->gone; /* while it was being submitted: cancel came too early */
    lock_drop(&s->lock);
    if (gone)
        api_call_cancel(s->call);
    return code;
}

bool stream_wait_done(struct stream *s)
{
    lock_take(&s->lock);
    bool over = s->aborted || api_call_done(s->call);
    if (!over) {
        s->suspended = true;
        s->idle_ns = clock_ns();
        MHD_suspend_connection(s->connection);
    }
    lock_drop(&s->lock);
    return over;
}

bool stream_gone(struct stream *s)
{
    lock_take(&s->lock);
    bool gone = s->gone;
    lock_drop(&s->lock);
    return gone;
}

static void put_comment(struct stream *s)
{
    uint32_t permille;
    switch (api_call_state(s->call, &permille)) {
    case REQUEST_LOADING:
        s->tenths = permille / 100;
        buf_printf(&s->out, ": loading %u%%\n\n", permille / 10);
        break;
    case REQUEST_RUNNING:
        buf_puts(&s->out, ": running\n\n");
        break;
    default:
        buf_printf(&s->out, ": queued, %u in line\n\n", engine_queued(s->hub->server->engine));
    }
}

/* Another tenth of the weights is there since the last comment. */
static bool has_progress(struct stream *s)
{
    uint32_t permille;
    return api_call_state(s->call, &permille) == REQUEST_LOADING && permille / 100 != s->tenths;
}

/* Something to write, or the end: true. Nothing yet: the connection is suspended, false. */
static bool refill(struct stream *s)
{
    buf_clear(&s->out);
    s->out_from = 0;
    for (;;) {
        lock_take(&s->lock);
        s->woken = false;
        bool gone = s->gone, comment = s->comment_due, aborted = s->aborted;
        s->comment_due = false;
        lock_drop(&s->lock);
        if (aborted || (gone && api_call_done(s->call)))
            return true;
        if (!gone)
            s->finished = api_call_render_events(s->call, &s->out);
        if (s->out.len == 0 && (has_progress(s) || comment))
            put_comment(s);
        if (s->out.len > 0 || s->finished)
            return true;
        lock_take(&s->lock);
        bool suspend = !s->woken;
        if (suspend) {
            s->suspended = true;
            s->idle_ns = clock_ns();
            MHD_suspend_connection(s->connection);
        }
        lock_drop(&s->lock);
        if (suspend)
            return false;
    }
}

ssize_t stream_read(void *cls, uint64_t pos, char *to, size_t max)
{
    struct stream *s = cls;
    if (pos == 0 && s->out.len == 0)
        put_comment(
            s); /* the headers leave with the first bytes: do not wait for the first token */
    if (s->out_from == s->out.len) {
        if (s->finished)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (!refill(s))
            return 0;
        if (s->out.len == 0)
            return s->finished ? MHD_CONTENT_READER_END_OF_STREAM
                               : MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = BASE_MIN(max, s->out.len - s->out_from);
    memcpy(to, s->out.data + s->out_from, n);
    s->out_from += n;
    return (ssize_t)n;
}

void stream_detach(struct stream **sp, int status, const struct err *e)
{
    struct stream *s = *sp;
    *sp = NULL;
    if (s->fd >= 0)
        epoll_ctl(s->hub->epoll, EPOLL_CTL_DEL, s->fd, NULL);
    s->fd = -1;
    lock_take(&s->lock);
    bool unfinished = status == 200 && !api_call_done(s->call);
    s->record.status = s->gone || unfinished ? 499 : status;
    if (e != NULL)
        s->error = *e;
    s->connection = NULL;
    s->suspended = false;
    s->orphan = true;
    struct api_call *finished = take_finished(s);
    if (finished == NULL)
        api_call_cancel(s->call);
    lock_drop(&s->lock);
    if (finished != NULL)
        stream_end(s, finished);
}
