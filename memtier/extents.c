/* Which granules of a pool are taken. A bitmap rather than a tree of free extents: 12 GiB are 3,072
 * words, so a full scan for a run costs microseconds, there is nothing to balance, and freeing
 * needs no neighbour search. The owner and length of a block are kept at its first granule. */
#include "memtier/pool.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void extents_init(struct extents *x, uint32_t capacity, uint32_t limit)
{
    size_t words = (size_t)capacity / 64 + 1;
    assert(limit <= capacity);
    *x = (struct extents){.capacity = capacity};
    x->free_bits = mem_array(words, sizeof(*x->free_bits));
    x->quiet_bits = mem_array(words, sizeof(*x->quiet_bits));
    x->owner = mem_array((size_t)capacity + 1, sizeof(*x->owner));
    x->count = mem_array((size_t)capacity + 1, sizeof(*x->count));
    extents_set_limit(x, limit);
}

void extents_done(struct extents *x)
{
    free(x->free_bits);
    free(x->quiet_bits);
    free(x->owner);
    free(x->count);
    *x = (struct extents){0};
}

static bool bit(const uint64_t *bits, uint32_t at)
{
    return (bits[at / 64] >> (at % 64)) & 1;
}

/* Set or clear [first, first + count). */
static void fill(uint64_t *bits, uint32_t first, uint32_t count, bool value)
{
    while (count > 0) {
        uint32_t in = first % 64, n = BASE_MIN(64 - in, count);
        uint64_t mask = (n == 64 ? UINT64_MAX : (((uint64_t)1 << n) - 1)) << in;
        if (value)
            bits[first / 64] |= mask;
        else
            bits[first / 64] &= ~mask;
        first += n;
        count -= n;
    }
}

/* First granule in [at, end) whose bit is `value`, or end. */
static uint32_t scan_up(const uint64_t *bits, uint32_t at, uint32_t end, bool value)
{
    uint64_t flip = value ? 0 : UINT64_MAX;
    while (at < end) {
        uint64_t word = (bits[at / 64] ^ flip) >> (at % 64);
        if (word != 0) {
            at += (uint32_t)__builtin_ctzll(word);
            return BASE_MIN(at, end);
        }
        at += 64 - at % 64;
    }
    return end;
}

/* Last granule in [0, end) whose bit is `value`, plus one; 0 if none. */
static uint32_t scan_down(const uint64_t *bits, uint32_t end, bool value)
{
    uint64_t flip = value ? 0 : UINT64_MAX;
    while (end > 0) {
        uint32_t last = end - 1;
        uint64_t word = (bits[last / 64] ^ flip) << (63 - last % 64);
        if (word != 0)
            return end - (uint32_t)__builtin_clzll(word);
        end = last / 64 * 64;
    }
    return 0;
}

uint32_t extents_find_low(const struct extents *x, uint32_t count)
{
    uint32_t at = scan_up(x->free_bits, 0, x->limit, true);
    while (at < x->limit && x->limit - at >= count) {
        /* Only as far as needed: the run may be gigabytes long. */
        uint32_t end = scan_up(x->free_bits, at, at + count, false);
        if (end == at + count)
            return at;
        at = scan_up(x->free_bits, end, x->limit, true);
    }
    return POOL_NONE;
}

uint32_t extents_find_high(const struct extents *x, uint32_t count)
{
    uint32_t end = scan_down(x->quiet_bits, x->limit, true);
    while (end >= count && end > 0) {
        uint32_t first = scan_down(x->quiet_bits, end, false);
        if (end - first >= count)
            return end - count;
        end = scan_down(x->quiet_bits, first, true);
    }
    return POOL_NONE;
}

uint32_t extents_largest(const struct extents *x)
{
    uint32_t best = 0, at = scan_up(x->free_bits, 0, x->limit, true);
    while (at < x->limit) {
        uint32_t end = scan_up(x->free_bits, at, x->limit, false);
        best = BASE_MAX(best, end - at);
        at = scan_up(x->free_bits, end, x->limit, true);
    }
    return best;
}

void extents_take(struct extents *x, uint32_t first, uint32_t count, uint32_t owner)
{
    assert(count > 0 && first < x->limit && count <= x->limit - first && owner != POOL_NONE);
    assert(scan_up(x->free_bits, first, first + count, false) == first + count);
    fill(x->free_bits, first, count, false);
    fill(x->quiet_bits, first, count, false);
    x->owner[first] = owner;
    x->count[first] = count;
    x->used += count;
}

void extents_give(struct extents *x, uint32_t first)
{
    uint32_t count = x->count[first];
    assert(count > 0 && !bit(x->free_bits, first));
    /* What lies above a lowered limit is not coming back as free. */
    uint32_t below = first >= x->limit ? 0 : BASE_MIN(count, x->limit - first);
    fill(x->free_bits, first, below, true);
    fill(x->quiet_bits, first, below, true);
    x->count[first] = 0;
    x->owner[first] = 0;
    x->used -= count;
}

void extents_quiet(struct extents *x, uint32_t first, uint32_t count, bool quiet)
{
    for (uint32_t i = first; i < first + count; i++)
        fill(x->quiet_bits, i, 1, quiet && bit(x->free_bits, i));
}

bool extents_is_quiet(const struct extents *x, uint32_t first, uint32_t count)
{
    return scan_up(x->quiet_bits, first, first + count, false) == first + count;
}

void extents_set_limit(struct extents *x, uint32_t limit)
{
    assert(limit <= x->capacity);
    if (limit < x->limit) {
        fill(x->free_bits, limit, x->limit - limit, false);
        fill(x->quiet_bits, limit, x->limit - limit, false);
    }
    uint32_t old = x->limit;
    x->limit = limit;
    /* Blocks that were left above an earlier, lower limit keep their granules. A block may also
     * reach over the old limit from below. */
    uint32_t at = 0;
    while (at < limit) {
        uint32_t count = bit(x->free_bits, at) ? 0 : x->count[at];
        if (count > 0) {
            at += count;
            continue;
        }
        if (at >= old) {
            fill(x->free_bits, at, 1, true);
            fill(x->quiet_bits, at, 1, true);
        }
        at++;
    }
}

uint32_t extents_next(const struct extents *x, uint32_t at, uint32_t *ret_owner)
{
    *ret_owner = POOL_NONE;
    if (at < x->limit && bit(x->free_bits, at))
        return scan_up(x->free_bits, at, x->limit, false) - at;
    if (at >= x->capacity || x->count[at] == 0)
        return 0;
    *ret_owner = x->owner[at];
    return x->count[at];
}
