/* The bounded ring of pointers: many producers, many consumers, no locks.
 *
 * After Vyukov's bounded MPMC queue, in the form with turns instead of sequence numbers: slot i is
 * free for lap t while slot.turn == 2t and holds lap t's item while slot.turn == 2t + 1. Turns
 * allow any capacity, also 1 and non-powers of two, so a configured queue length is met exactly.
 *
 * The eventfd is written only when `signalled` goes from 0 to 1: a burst of pushes costs one system
 * call. That is sound because ring_drain_fd reads the descriptor first and clears `signalled`
 * afterwards, and its caller pops afterwards: a push that found `signalled` set is ordered before
 * the clearing exchange, hence before the pops. The other order (clear, then read) could swallow a
 * write and leave `signalled` set with nothing to wake on. */
#include "base/base.h"

#include <errno.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { CACHE_LINE = 64 };

struct ring_slot {
    _Atomic uint64_t turn;
    void *item; /* owned by whoever the turn says */
};

struct ring {
    size_t capacity;
    struct ring_slot *slots; /* [capacity] */
    int fd;
    /* Producers and consumers write different lines. 64-bit positions never wrap in practice. */
    alignas(CACHE_LINE) _Atomic uint64_t tail;
    alignas(CACHE_LINE) _Atomic uint64_t head;
    alignas(CACHE_LINE) _Atomic int signalled;
};

enum err_code ring_open(struct ring **ret, size_t capacity, struct err *e)
{
    if (capacity == 0 || capacity > SIZE_MAX / sizeof(struct ring_slot))
        return err_set(e, ERR_INVALID, "a ring of %zu items cannot be made", capacity);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return err_set_errno(e, ERR_IO, "cannot make an eventfd (raise `ulimit -n`?)");
    struct ring_slot *slots = calloc(capacity, sizeof(*slots));
    struct ring *r = aligned_alloc(CACHE_LINE, sizeof(*r));
    if (slots == NULL || r == NULL) {
        free(slots);
        free(r);
        (void)close(fd);
        return err_set(e, ERR_NO_MEMORY, "no memory for a ring of %zu items", capacity);
    }
    r->capacity = capacity;
    r->slots = slots;
    r->fd = fd;
    atomic_init(&r->tail, 0);
    atomic_init(&r->head, 0);
    atomic_init(&r->signalled, 0);
    *ret = r;
    return ERR_OK;
}

void ring_close(struct ring **r)
{
    if (*r == NULL)
        return;
    (void)close((*r)->fd);
    free((*r)->slots);
    free(*r);
    *r = NULL;
}

void ring_wake(struct ring *r)
{
    /* acq_rel: releases the item published before it to the exchange in ring_drain_fd. */
    if (atomic_exchange_explicit(&r->signalled, 1, memory_order_acq_rel) != 0)
        return;
    uint64_t one = 1;
    while (write(r->fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void ring_drain_fd(struct ring *r)
{
    uint64_t count;
    while (read(r->fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
    /* acq_rel: acquires what every ring_wake before it in the exchange order released. */
    (void)atomic_exchange_explicit(&r->signalled, 0, memory_order_acq_rel);
}

bool ring_push(struct ring *r, void *item)
{
    /* relaxed: only a hint where to look; the slot's turn decides. */
    uint64_t pos = atomic_load_explicit(&r->tail, memory_order_relaxed);
    for (;;) {
        struct ring_slot *slot = &r->slots[pos % r->capacity];
        uint64_t free_turn = 2 * (pos / r->capacity);
        /* acquire: pairs with ring_pop's release store, so its read of `item` is over. */
        if (atomic_load_explicit(&slot->turn, memory_order_acquire) == free_turn) {
            /* relaxed: winning the position orders nothing; the turn publishes. */
            if (atomic_compare_exchange_weak_explicit(&r->tail, &pos, pos + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                slot->item = item;
                /* release: pairs with ring_pop's acquire load, which then sees `item`. */
                atomic_store_explicit(&slot->turn, free_turn + 1, memory_order_release);
                ring_wake(r);
                return true;
            }
        } else {
            uint64_t before = pos;
            /* relaxed: an unmoved tail means the slot of this very lap is still taken. */
            pos = atomic_load_explicit(&r->tail, memory_order_relaxed);
            if (pos == before)
                return false;
        }
    }
}

void *ring_pop(struct ring *r)
{
    /* relaxed: as in ring_push. */
    uint64_t pos = atomic_load_explicit(&r->head, memory_order_relaxed);
    for (;;) {
        struct ring_slot *slot = &r->slots[pos % r->capacity];
        uint64_t full_turn = 2 * (pos / r->capacity) + 1;
        /* acquire: pairs with ring_push's release store of the turn. */
        if (atomic_load_explicit(&slot->turn, memory_order_acquire) == full_turn) {
            /* relaxed: as in ring_push. */
            if (atomic_compare_exchange_weak_explicit(&r->head, &pos, pos + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                void *item = slot->item;
                /* release: pairs with ring_push's acquire load on the next lap. */
                atomic_store_explicit(&slot->turn, full_turn + 1, memory_order_release);
                return item;
            }
        } else {
            uint64_t before = pos;
            /* relaxed: as in ring_push. */
            pos = atomic_load_explicit(&r->head, memory_order_relaxed);
            if (pos == before)
                return NULL;
        }
    }
}

size_t ring_count(const struct ring *r)
{
    /* relaxed: a snapshot for gauges; head first, so that a race shows too many, never negative. */
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    uint64_t count = tail > head ? tail - head : 0;
    return count < r->capacity ? (size_t)count : r->capacity;
}

int ring_fd(const struct ring *r)
{
    return r->fd;
}
