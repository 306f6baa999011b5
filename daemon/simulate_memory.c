/* The simulator's memory: experts in one pool, moved by memtier's policies. Belady's policy lives here
 * and not in memtier, because only a replay knows the future. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/simulate.h"

static uint64_t ns_of(double s)
{
    return (uint64_t)llround(s * 1e9);
}

/* What eviction costs under the policy, per expert; the least goes first. */
static double cost_of(const struct sim_memory *m, const struct sim_expert *x)
{
    if (m->policy == NULL)
        return x->next_use == UINT64_MAX ? 0 : 1 / (1 + (double)x->next_use);
    struct policy_view v = {
        .bytes = m->expert_bytes,
        .kind = MEMTIER_KIND_LAYER,
        .idle_uses = m->seq - x->used_seq,
        .idle_ns = m->now_ns - x->used_ns,
        .uses = x->uses,
        .load_seconds = m->load_s,
        .resident_ns = m->now_ns - x->resident_ns,
        .queued = x->queued,
    };
    return policy_cost(m->policy, &v);
}

static void evict(struct sim_memory *m, uint32_t at)
{
    struct sim_expert *x = &m->experts[m->resident[at]];
    m->resident[at] = m->resident[--m->resident_count];
    m->experts[m->resident[at]].resident_at = at;
    x->place = SIM_ABSENT;
    m->used -= m->expert_bytes;
    m->evictions++;
}

static bool evict_cheapest(struct sim_memory *m)
{
    uint32_t best = UINT32_MAX;
    double least = (double)INFINITY;
    for (uint32_t i = 0; i < m->resident_count; i++) {
        const struct sim_expert *x = &m->experts[m->resident[i]];
        if (x->held)
            continue;
        double cost = cost_of(m, x);
        /* Ties by number, so that the order of the list decides nothing. */
        if (cost < least || (cost == least && m->resident[i] < m->resident[best])) {
            best = i;
            least = cost;
        }
    }
    if (best == UINT32_MAX)
        return false;
    evict(m, best);
    return true;
}

uint64_t sim_memory_room(const struct sim_memory *m)
{
    uint64_t fixed = m->kv_used + m->queue_count * m->expert_bytes;
    for (uint32_t i = 0; i < m->resident_count; i++)
        fixed += m->experts[m->resident[i]].held ? m->expert_bytes : 0;
    return m->capacity > fixed ? m->capacity - fixed : 0;
}

static bool make_room(struct sim_memory *m, uint64_t bytes)
{
    if (bytes > sim_memory_room(m))
        return false;
    while (m->used + m->kv_used + bytes > m->capacity) {
        if (!evict_cheapest(m))
            return false;
    }
    return true;
}

bool sim_memory_load(struct sim_memory *m, uint32_t expert)
{
    if (m->queue_count == SIM_OPEN_MAX || !make_room(m, m->expert_bytes))
        return false;
    if (m->queue_count == 0)
        m->load_end_ns = m->now_ns + ns_of(m->load_s);
    m->queue[m->queue_count++] = expert;
    m->experts[expert].place = SIM_LOADING;
    m->used += m->expert_bytes;
    assert(m->used + m->kv_used <= m->capacity);
    m->loads++;
    return true;
}

bool sim_memory_take_kv(struct sim_memory *m, uint64_t bytes)
{
    if (!make_room(m, bytes))
        return false;
    m->kv_used += bytes;
    assert(m->used + m->kv_used <= m->capacity);
    return true;
}

uint32_t sim_memory_arrive(struct sim_memory *m)
{
    uint32_t expert = m->queue[0];
    struct sim_expert *x = &m->experts[expert];
    x->place = SIM_RESIDENT;
    x->resident_ns = m->load_end_ns;
    x->resident_at = m->resident_count;
    m->resident[m->resident_count++] = expert;
    memmove(m->queue, m->queue + 1, --m->queue_count * sizeof(m->queue[0]));
    m->load_end_ns += ns_of(m->load_s);
    return expert;
}

void sim_memory_use(struct sim_memory *m, uint32_t expert)
{
    struct sim_expert *x = &m->experts[expert];
    m->seq++;
    x->uses = policy_decay(x->uses, m->seq - x->used_seq) + 1;
    x->used_seq = m->seq;
    x->used_ns = m->now_ns;
}

/* ---- Belady's bound ---- */

/* Max-heap of (next use, expert); entries that are no longer true are dropped when they surface. */
struct heap {
    struct heap_item {
        uint64_t next;
        uint32_t expert;
    } *items;
    size_t count, cap;
};

static void heap_push(struct heap *h, uint64_t next, uint32_t expert)
{
    if (h->count == h->cap) {
        h->cap = h->cap * 2 + 64;
        h->items = mem_grow(h->items, h->cap, sizeof(*h->items));
    }
    size_t i = h->count++;
    while (i > 0 && h->items[(i - 1) / 2].next < next) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = (struct heap_item){next, expert};
}

static struct heap_item heap_pop(struct heap *h)
{
    struct heap_item top = h->items[0], last = h->items[--h->count];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= h->count)
            break;
        if (k + 1 < h->count && h->items[k + 1].next > h->items[k].next)
            k++;
        if (h->items[k].next <= last.next)
            break;
        h->items[i] = h->items[k];
        i = k;
    }
    if (h->count > 0)
        h->items[i] = last;
    return top;
}

uint64_t sim_belady_loads(const uint32_t *experts, size_t n, uint32_t experts_count, uint32_t places)
{
    uint64_t *next = mem_array(n + 1, sizeof(*next)); /* of the reference: when its expert comes again */
    uint64_t *when = mem_array(experts_count, sizeof(*when)); /* of the expert, + 1; 0 = absent */
    uint64_t *seen = mem_array(experts_count, sizeof(*seen));
    struct heap h = {0};
    uint64_t loads = 0, used = 0;
    memset(seen, 0xff, experts_count * sizeof(*seen));
    for (size_t i = n; i-- > 0;) {
        next[i] = seen[experts[i]] == UINT64_MAX ? n : seen[experts[i]];
        seen[experts[i]] = i;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t x = experts[i];
        if (when[x] == 0) {
            loads++;
            while (used >= places && h.count > 0) {
                struct heap_item top = heap_pop(&h);
                if (when[top.expert] != top.next + 1)
                    continue; /* used since, or gone */
                when[top.expert] = 0;
                used--;
            }
            used++;
        }
        when[x] = next[i] + 1;
        heap_push(&h, next[i], x);
    }
    free(h.items);
    free(next);
    free(when);
    free(seen);
    return loads;
}
