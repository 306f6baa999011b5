/* A fixed table of connections. Opening and closing take the lock; the marks per request are
 * atomics. */
#include "daemon/http_conn.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>

struct conn {
    struct conns *table;
    int fd;                        /* -1 = free; guarded by the table's lock */
    _Atomic uint64_t receiving_ns; /* since when a request is awaited; 0 = none is */
    struct conn *next_free;
};

struct conns {
    struct lock lock;
    struct conn *slots, *free_list;
    size_t capacity;
    uint64_t limit_ns;
};

struct conns *conns_open(size_t capacity, uint64_t limit_ns)
{
    struct conns *c = mem_alloc(sizeof *c);
    lock_init(&c->lock, LOCK_RANK_SERVER, "connections");
    c->slots = mem_array(capacity, sizeof *c->slots);
    c->capacity = capacity;
    c->limit_ns = limit_ns;
    for (size_t i = capacity; i-- > 0;) {
        c->slots[i] = (struct conn){.table = c, .fd = -1, .next_free = c->free_list};
        c->free_list = &c->slots[i];
    }
    return c;
}

void conns_close(struct conns **cp)
{
    struct conns *c = *cp;
    *cp = NULL;
    if (c == NULL)
        return;
    lock_done(&c->lock);
    free(c->slots);
    free(c);
}

static struct conn *conn_begin(struct conns *c, int fd)
{
    lock_take(&c->lock);
    struct conn *slot = c->free_list;
    if (slot != NULL) {
        c->free_list = slot->next_free;
        slot->fd = fd;
        atomic_store(&slot->receiving_ns, clock_ns());
    }
    lock_drop(&c->lock);
    return slot;
}

static void conn_end(struct conn *slot)
{
    struct conns *c = slot->table;
    lock_take(&c->lock);
    slot->fd = -1;
    slot->next_free = c->free_list;
    c->free_list = slot;
    lock_drop(&c->lock);
}

void conns_notify(void *cls, struct MHD_Connection *connection, void **socket_context,
                  enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *socket_context = info != NULL ? conn_begin(cls, info->connect_fd) : NULL;
    } else if (*socket_context != NULL) {
        conn_end(*socket_context);
        *socket_context = NULL;
    }
}

static void mark(struct MHD_Connection *connection, uint64_t receiving_ns)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *slot = info != NULL ? info->socket_context : NULL;
    if (slot != NULL)
        atomic_store(&slot->receiving_ns, receiving_ns);
}

void conns_received(struct MHD_Connection *connection)
{
    mark(connection, 0);
}

void conns_answered(struct MHD_Connection *connection)
{
    mark(connection, clock_ns());
}

void conns_tick(struct conns *c, uint64_t now_ns)
{
    lock_take(&c->lock);
    for (size_t i = 0; i < c->capacity; i++) {
        uint64_t since = atomic_load(&c->slots[i].receiving_ns);
        /* The lock keeps the descriptor from being closed and given to someone else meanwhile. */
        if (c->slots[i].fd >= 0 && since != 0 && now_ns > since && now_ns - since > c->limit_ns)
            shutdown(c->slots[i].fd, SHUT_RDWR);
    }
    lock_drop(&c->lock);
}
