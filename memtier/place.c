/* Where a segment goes, and what must leave for it: the cheapest contiguous window. A window is a
 * row of neighbouring blocks, free or evictable, that together are long enough; it always begins at
 * a block's edge, because beginning inside an evictable block evicts that block all the same. Pure:
 * it sees a list of blocks with costs and returns addresses and victims, so tests drive it directly
 * and the caller can try a whole reservation before anything is really moved. */
#include "memtier/pool.h"

#include <stdlib.h>
#include <string.h>

void place_done(struct place *p)
{
    free(p->blocks);
    free(p->victims);
    *p = (struct place){0};
}

static void reserve_blocks(struct place *p, size_t count)
{
    if (count <= p->blocks_cap)
        return;
    p->blocks_cap = BASE_MAX(count, p->blocks_cap * 2 + 64);
    p->blocks = mem_grow(p->blocks, p->blocks_cap, sizeof(*p->blocks));
}

void place_push(struct place *p, uint32_t first, uint32_t count, uint32_t owner, double cost)
{
    reserve_blocks(p, p->blocks_count + 1);
    p->blocks[p->blocks_count++] = (struct place_block){first, count, owner, cost};
}

struct window {
    size_t from, to; /* blocks [from, to) */
    double cost;
};

/* The cheapest window that begins at block `at` (or ends with it, from the top). */
static bool window_at(const struct place *p, size_t at, uint32_t count, bool from_top,
                      double cost_max, struct window *ret)
{
    uint64_t have = 0;
    double cost = 0;
    size_t i = at;
    while (have < count) {
        if (i >= p->blocks_count || p->blocks[i].cost < 0)
            return false;
        cost += p->blocks[i].cost;
        if (cost >= cost_max)
            return false;
        have += p->blocks[i].count;
        if (have < count && from_top && i == 0)
            return false;
        i = from_top ? i - 1 : i + 1;
    }
    *ret = from_top ? (struct window){i + 1, at + 1, cost} : (struct window){at, i, cost};
    return true;
}

static bool cheapest(const struct place *p, uint32_t count, bool from_top, struct window *ret)
{
    bool found = false;
    double best = 1e300;
    for (size_t k = 0; k < p->blocks_count && best > 0; k++) {
        size_t at = from_top ? p->blocks_count - 1 - k : k;
        struct window w;
        if (!window_at(p, at, count, from_top, best, &w))
            continue;
        *ret = w;
        best = w.cost;
        found = true;
    }
    return found;
}

static void push_victim(struct place *p, uint32_t owner)
{
    if (p->victims_count == p->victims_cap) {
        p->victims_cap = p->victims_cap * 2 + 64;
        p->victims = mem_grow(p->victims, p->victims_cap, sizeof(*p->victims));
    }
    p->victims[p->victims_count++] = owner;
}

/* Replace the window by the placed block and what is left free of it. */
static void cut(struct place *p, struct window w, uint32_t first, uint32_t count)
{
    uint32_t from = p->blocks[w.from].first;
    uint32_t to = p->blocks[w.to - 1].first + p->blocks[w.to - 1].count;
    struct place_block with[3];
    size_t n = 0;
    if (first > from)
        with[n++] = (struct place_block){from, first - from, POOL_NONE, 0};
    with[n++] = (struct place_block){first, count, POOL_NONE, PLACE_BARRIER};
    if (to > first + count)
        with[n++] = (struct place_block){first + count, to - first - count, POOL_NONE, 0};
    size_t tail = p->blocks_count - w.to;
    reserve_blocks(p, w.from + n + tail);
    memmove(&p->blocks[w.from + n], &p->blocks[w.to], tail * sizeof(*p->blocks));
    memcpy(&p->blocks[w.from], with, n * sizeof(*with));
    p->blocks_count = w.from + n + tail;
}

uint32_t place_one(struct place *p, uint32_t count, bool from_top)
{
    struct window w = {0};
    if (!cheapest(p, count, from_top, &w))
        return POOL_NONE;
    for (size_t i = w.from; i < w.to; i++) {
        if (p->blocks[i].owner != POOL_NONE)
            push_victim(p, p->blocks[i].owner);
    }
    const struct place_block *last = &p->blocks[w.to - 1];
    uint32_t first = from_top ? last->first + last->count - count : p->blocks[w.from].first;
    cut(p, w, first, count);
    return first;
}
