/* Waiting: the job gate that starts a run and the barrier between launches. A barrier costs a few
 * hundred nanoseconds when all threads run; when one was descheduled the others give the processor
 * back after about 50 us instead of burning it (two spinning threads on a shared machine lose far
 * more). */
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rdu/node/node.h"

#define AHEAD_LINES 4    /* per round: more would queue up before the load that ends the wait */
#define SPIN_ROUNDS 2000 /* of one pause each: about 20 ns on Zen, 60 ns on Skylake and later */

static void futex_wait(_Atomic uint32_t *addr, uint32_t expected)
{
    syscall(SYS_futex, addr, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *addr)
{
    syscall(SYS_futex, addr, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void node_gate_publish(struct node_gate *g, uint32_t value)
{
    /* seq_cst on both sides: either the waiter sees the new value, or we see the sleeper. */
    atomic_store(&g->value, value);
    if (atomic_load(&g->sleepers) > 0)
        futex_wake_all(&g->value);
}

void node_ahead_fetch(struct node_ahead *a, uint32_t lines)
{
    while (lines > 0 && a->span < NODE_AHEAD_SPANS) {
        if (a->at[a->span] >= a->end[a->span]) {
            a->span++;
            continue;
        }
        _mm_prefetch(a->at[a->span], _MM_HINT_T1);
        a->at[a->span] += 64;
        lines--;
    }
}

void node_gate_wait(struct node_gate *g, uint32_t old, struct node_ahead *a)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        /* acquire: pairs with the store in node_gate_publish. */
        if (atomic_load_explicit(&g->value, memory_order_acquire) != old)
            return;
        if (a)
            node_ahead_fetch(a, AHEAD_LINES);
        _mm_pause();
    }
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->value) == old)
        futex_wait(&g->value, old);
    atomic_fetch_sub(&g->sleepers, 1);
}

void node_barrier_wait(struct node_barrier *b, struct node_ahead *a)
{
    if (b->threads == 1)
        return;
    /* relaxed: it cannot move before we have arrived; the pair is the fetch_add below. */
    uint32_t phase = atomic_load_explicit(&b->phase.value, memory_order_relaxed);
    /* acq_rel: everyone's writes before the barrier are visible to the last to arrive, who releases
     * them to all through the phase. */
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == b->threads) {
        /* relaxed: published to the others by the phase's store right after. */
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        node_gate_publish(&b->phase, phase + 1);
        return;
    }
    node_gate_wait(&b->phase, phase, a);
}
