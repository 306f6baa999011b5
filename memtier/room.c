/* Making room in hbm: free runs first, else the cheapest contiguous windows, else sliding what may
 * move together. A reservation is planned as a whole on a copy of the block list before anything is
 * evicted, so it gets everything or changes nothing. */
#include "memtier/residency.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* What a duplicate in ddr costs to drop: less than anything else, more than free memory. */
#define DUPLICATE_COST 1e-300

bool seg_evictable(const struct seg *s)
{
    return s->state == SEG_RESIDENT && s->pins == 0 && s->holds == 0;
}

/* Resident, and nobody has its address: pinned at most by the reservation that is being made. */
static bool seg_movable(const struct memtier *m, const struct seg *s)
{
    uint32_t own = s->mark == m->mark && s->pins > 0 ? 1 : 0;
    return s->state == SEG_RESIDENT && s->pins == own;
}

static double seg_cost(const struct memtier *m, const struct seg *s)
{
    double rate = m->load_rate > 0 ? m->load_rate : 1e9;
    struct policy_view v = {
        .bytes = s->bytes,
        .kind = s->kind,
        .idle_uses = m->seq - s->used_seq,
        .idle_ns = m->now_ns > s->used_ns ? m->now_ns - s->used_ns : 0,
        .uses = s->uses,
        .load_seconds = s->is_page && s->spill != SPILL_HELD ? s->remake_seconds
                                                             : 1e-4 + (double)s->bytes / rate,
        .resident_ns = m->now_ns > s->resident_ns ? m->now_ns - s->resident_ns : 0,
        .queued = s->queued,
    };
    double cost = policy_cost(m->policy, &v);
    /* A page is of use only behind those before it: the end of a chain goes first. */
    if (s->is_page)
        cost *= 1 + 1.0 / (1 + s->depth);
    /* A free run costs 0: anything that must be evicted costs more. */
    return BASE_MAX(cost, 1e-200);
}

/* ---- demotion to ddr ---- */

void ddr_drop(struct memtier *m, struct seg *s)
{
    assert(s->ddr == DDR_HELD);
    m->stats.ddr_evictions++;
    extents_give(&m->ddr.extents, s->ddr_at);
    s->ddr = DDR_NONE;
}

static bool ddr_busy(const struct seg *s)
{
    bool promoting =
        (s->state == SEG_LOADING || s->state == SEG_CANCELLING) && s->from == MEMTIER_DDR;
    return s->ddr == DDR_COPYING || promoting;
}

/* A place in ddr, if what must leave for it is worth less. POOL_NONE = no. */
static uint32_t ddr_make_room(struct memtier *m, const struct seg *s)
{
    uint32_t at = extents_find_low(&m->ddr.extents, s->granules);
    if (at != POOL_NONE)
        return at;
    struct place *p = &m->place_ddr;
    p->blocks_count = p->victims_count = 0;
    double own = seg_cost(m, s), cost = 0;
    uint32_t count, owner;
    for (uint32_t g = 0; (count = extents_next(&m->ddr.extents, g, &owner)) > 0; g += count) {
        if (owner == POOL_NONE)
            cost = 0;
        else if (ddr_busy(m->segs[owner]))
            cost = PLACE_BARRIER;
        else
            cost = seg_has_memory(m->segs[owner]) ? DUPLICATE_COST : seg_cost(m, m->segs[owner]);
        place_push(p, g, count, owner, cost);
    }
    at = place_one(p, s->granules, false);
    double sum = 0;
    for (size_t i = 0; at != POOL_NONE && i < p->victims_count; i++) {
        const struct seg *v = m->segs[p->victims[i]];
        sum += seg_has_memory(v) ? DUPLICATE_COST : seg_cost(m, v);
    }
    if (at == POOL_NONE || sum > own)
        return POOL_NONE;
    for (size_t i = 0; i < p->victims_count; i++)
        ddr_drop(m, m->segs[p->victims[i]]);
    return at;
}

/* Queue the copy. The source granules are free already, but until the copy is done only loads,
 * which queue behind it, may be put there: `quiet` says so to everybody else. */
static void start_demotion(struct memtier *m, struct seg *s)
{
    if (m->ddr.base == NULL || s->is_page || s->ddr != DDR_NONE || m->jobs_out >= JOBS_MAX)
        return;
    uint32_t at = ddr_make_room(m, s);
    if (at == POOL_NONE)
        return;
    extents_take(&m->ddr.extents, at, s->granules, s->idx);
    s->ddr_at = at;
    s->ddr = DDR_COPYING;
    extents_quiet(&m->hbm.extents, s->at, s->granules, false);
    s->demote = (struct load_job){.kind = JOB_COPY,
                                  .owner = s,
                                  .bytes = s->bytes,
                                  .src = pool_at(&m->hbm, s->at),
                                  .dst = pool_at(&m->ddr, at),
                                  .slab = s->at, /* remembered for room_demote_done */
                                  .submit_ns = clock_ns()};
    loader_submit(m->loader, &s->demote);
    m->jobs_out++;
    m->demotes_out++;
}

void room_demote_done(struct memtier *m, struct seg *s)
{
    assert(s->ddr == DDR_COPYING);
    s->ddr = DDR_HELD;
    m->demotes_out--;
    m->stats.demotions++;
    m->stats.demote_bytes += s->bytes;
    hist_add(&m->stats.demote_hist, s->demote.done_ns - s->demote.submit_ns);
    m->copied = true;
    extents_quiet(&m->hbm.extents, s->demote.slab, s->granules, true);
}

void seg_evict(struct memtier *m, struct seg *s, bool demote)
{
    assert(seg_evictable(s));
    m->stats.evictions++;
    m->stats.evicted_bytes += s->bytes;
    m->stats.evictions_by_kind[s->kind]++;
    if (s->prefetched) {
        s->prefetched = false;
        m->stats.prefetch_wasted++;
        m->prefetch_wasted_recent++;
    }
    seg_free_memory(m, s, SEG_ABSENT);
    if (s->is_page)
        page_evicted(m, s);
    else if (demote)
        start_demotion(m, s);
}

uint64_t memtier_drop(struct memtier *m, const uint32_t *segs, size_t count, bool to_ddr)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        assert(segs[i] < m->segs_count);
        struct seg *s = m->segs[segs[i]];
        if (seg_evictable(s) && s->queued == 0) {
            bytes += s->bytes;
            seg_evict(m, s, to_ddr);
        }
        if (!to_ddr && s->ddr == DDR_HELD && !ddr_busy(s))
            ddr_drop(m, s);
    }
    publish_stats(m);
    return bytes;
}

/* ---- planning ---- */

/* After a shrink there may be blocks above the limit that count but leave free granules below it:
 * the budget is the bytes, wherever they are. */
static bool budget_allows(const struct memtier *m, uint64_t need, uint64_t freed)
{
    return (uint64_t)m->hbm.extents.used + need <= (uint64_t)m->hbm.extents.limit + freed;
}

static uint64_t missing_granules(const struct memtier *m, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += m->segs[m->missing[i]]->granules;
    return sum;
}

static uint64_t victim_granules(const struct memtier *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->place.victims_count; i++)
        sum += m->segs[m->place.victims[i]]->granules;
    return sum;
}

static void list_blocks(struct memtier *m, bool quiet_only)
{
    const struct extents *x = &m->hbm.extents;
    struct place *p = &m->place;
    p->blocks_count = p->victims_count = 0;
    uint32_t count, owner;
    for (uint32_t g = 0; g < x->limit; g += count) {
        count = extents_next(x, g, &owner);
        double cost = PLACE_BARRIER;
        if (count == 0) {
            count = 1; /* not reachable below the limit; a barrier is the safe reading */
        } else if (owner == POOL_NONE) {
            cost = quiet_only && !extents_is_quiet(x, g, count) ? PLACE_BARRIER : 0;
        } else if (seg_evictable(m->segs[owner])) {
            cost = seg_cost(m, m->segs[owner]);
        }
        /* A block that reaches over a lowered limit cannot be reused whole. */
        if (g + count > x->limit)
            cost = PLACE_BARRIER;
        place_push(p, g, count, owner, cost);
    }
}

static void evict_victims(struct memtier *m, bool demote)
{
    for (size_t i = 0; i < m->place.victims_count; i++)
        seg_evict(m, m->segs[m->place.victims[i]], demote);
}

uint32_t take_granules(struct memtier *m, uint32_t first, uint32_t count, uint32_t owner)
{
    extents_take(&m->hbm.extents, first, count, owner);
    m->free_changed = true;
    uint64_t used = (uint64_t)m->hbm.extents.used * POOL_GRANULE;
    m->stats.hbm_peak = BASE_MAX(m->stats.hbm_peak, used);
    return first;
}

/* The common case while the pool fills: everything fits into free runs. */
static bool place_free(struct memtier *m, size_t count)
{
    struct extents *x = &m->hbm.extents;
    size_t done = 0;
    if (!budget_allows(m, missing_granules(m, count), 0))
        return false;
    for (; done < count; done++) {
        struct seg *s = m->segs[m->missing[done]];
        uint32_t at = extents_find_low(x, s->granules);
        if (at == POOL_NONE)
            break;
        m->missing_at[done] = take_granules(m, at, s->granules, s->idx);
    }
    if (done == count)
        return true;
    while (done-- > 0)
        extents_give(x, m->missing_at[done]);
    return false;
}

/* Indices into m->missing, the largest first. */
static void order_missing(const struct memtier *m, size_t count, uint32_t *order)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t granules = m->segs[m->missing[i]]->granules;
        size_t k = i;
        while (k > 0 && m->segs[m->missing[order[k - 1]]]->granules < granules) {
            order[k] = order[k - 1];
            k--;
        }
        order[k] = (uint32_t)i;
    }
}

static bool place_planned(struct memtier *m, size_t count)
{
    list_blocks(m, false);
    for (size_t i = 0; i < count; i++) {
        m->missing_at[i] = place_one(&m->place, m->segs[m->missing[i]]->granules, false);
        if (m->missing_at[i] == POOL_NONE)
            return false;
    }
    if (!budget_allows(m, missing_granules(m, count), victim_granules(m)))
        return false;
    evict_victims(m, true);
    for (size_t i = 0; i < count; i++) {
        struct seg *s = m->segs[m->missing[i]];
        take_granules(m, m->missing_at[i], s->granules, s->idx);
    }
    return true;
}

/* ---- sliding ---- */

/* A row of blocks between two that cannot move. */
struct run {
    uint32_t first, size, kept;
};

static size_t list_runs(struct memtier *m, struct run *runs)
{
    const struct extents *x = &m->hbm.extents;
    size_t n = 0;
    uint32_t count, owner;
    bool open = false;
    for (uint32_t g = 0; g < x->limit; g += count) {
        count = extents_next(x, g, &owner);
        bool stays = count == 0 || g + count > x->limit ||
                     (owner != POOL_NONE && !seg_movable(m, m->segs[owner]));
        count = BASE_MAX(count, 1u);
        if (stays) {
            open = false;
            continue;
        }
        if (!open)
            runs[n++] = (struct run){.first = g};
        open = true;
        runs[n - 1].size += count;
        runs[n - 1].kept += owner == POOL_NONE ? 0 : count;
    }
    return n;
}

/* Would everything fit behind what is kept, the largest first? `needs` is sorted that way. */
static bool runs_fit(const struct run *runs, size_t n, const uint32_t *needs, size_t needs_count)
{
    struct run *left = mem_array(n + 1, sizeof(*left));
    bool ok = true;
    memcpy(left, runs, n * sizeof(*left));
    for (size_t i = 0; i < needs_count && ok; i++) {
        ok = false;
        for (size_t k = 0; k < n && !ok; k++) {
            if (left[k].size - left[k].kept < needs[i])
                continue;
            left[k].kept += needs[i];
            ok = true;
        }
    }
    free(left);
    return ok;
}

static struct run *run_of(struct run *runs, size_t n, uint32_t at)
{
    for (size_t k = 0; k < n; k++) {
        if (at >= runs[k].first && at < runs[k].first + runs[k].size)
            return &runs[k];
    }
    return NULL;
}

struct candidate {
    double cost_per_granule;
    uint32_t idx;
};

static int candidate_order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->cost_per_granule != y->cost_per_granule)
        return x->cost_per_granule < y->cost_per_granule ? -1 : 1;
    return x->idx < y->idx ? -1 : 1;
}

static struct candidate *list_candidates(const struct memtier *m, size_t *ret_count)
{
    const struct extents *x = &m->hbm.extents;
    struct candidate *c = mem_array(m->segs_count + 1, sizeof(*c));
    size_t n = 0;
    uint32_t count, owner;
    for (uint32_t g = 0; g < x->limit; g += count) {
        count = extents_next(x, g, &owner);
        if (count > 0 && owner != POOL_NONE && seg_evictable(m->segs[owner]))
            c[n++] = (struct candidate){seg_cost(m, m->segs[owner]) / count, owner};
        count = BASE_MAX(count, 1u);
    }
    qsort(c, n, sizeof(*c), candidate_order);
    *ret_count = n;
    return c;
}

/* Move the movable blocks of a run to its bottom, in order, so every move goes down. */
static uint64_t slide_run(struct memtier *m, const struct run *r, uint64_t bytes_max)
{
    struct extents *x = &m->hbm.extents;
    uint64_t moved = 0;
    uint32_t to = r->first, count, owner;
    for (uint32_t g = r->first; g < r->first + r->size && moved < bytes_max; g += count) {
        count = extents_next(x, g, &owner);
        assert(count > 0);
        if (owner == POOL_NONE)
            continue;
        struct seg *s = m->segs[owner];
        if (g != to) {
            memmove(pool_at(&m->hbm, to), pool_at(&m->hbm, g), (size_t)s->bytes);
            extents_give(x, g);
            extents_take(x, to, s->granules, owner);
            s->at = to;
            moved += s->bytes;
            /* The scan goes on behind the old place: what is between is free now. */
        }
        to += s->granules;
    }
    m->stats.compacted_bytes += moved;
    return moved;
}

uint64_t room_slide(struct memtier *m, uint64_t bytes_max)
{
    /* A demotion still reads memory that looks free: nothing may be moved into it. */
    if (m->demotes_out > 0)
        return 0;
    struct run *runs = mem_array((size_t)m->hbm.extents.limit + 1, sizeof(*runs));
    size_t n = list_runs(m, runs);
    uint64_t moved = 0;
    for (size_t k = 0; k < n && moved < bytes_max; k++)
        moved += slide_run(m, &runs[k], bytes_max - moved);
    free(runs);
    return moved;
}

/* Evict the least worthy until sliding the rest makes room for all `needs`, then slide. */
static bool slide_for(struct memtier *m, const uint32_t *needs, size_t needs_count)
{
    if (m->demotes_out > 0)
        return false;
    struct run *runs = mem_array((size_t)m->hbm.extents.limit + 1, sizeof(*runs));
    size_t n = list_runs(m, runs), candidates = 0, evict = 0;
    struct candidate *c = list_candidates(m, &candidates);
    uint64_t need = 0, freed = 0;
    for (size_t i = 0; i < needs_count; i++)
        need += needs[i];
    bool fits = budget_allows(m, need, 0) && runs_fit(runs, n, needs, needs_count);
    while (!fits && evict < candidates) {
        const struct seg *s = m->segs[c[evict++].idx];
        struct run *r = run_of(runs, n, s->at);
        freed += s->granules;
        if (r != NULL)
            r->kept -= s->granules;
        fits = budget_allows(m, need, freed) && runs_fit(runs, n, needs, needs_count);
    }
    for (size_t i = 0; fits && i < evict; i++)
        seg_evict(m, m->segs[c[i].idx], false);
    for (size_t k = 0; fits && k < n; k++)
        (void)slide_run(m, &runs[k], UINT64_MAX);
    free(c);
    free(runs);
    return fits;
}

static bool place_by_sliding(struct memtier *m, size_t count)
{
    uint32_t *order = mem_array(count, sizeof(*order)), *needs = mem_array(count, sizeof(*needs));
    order_missing(m, count, order);
    for (size_t i = 0; i < count; i++)
        needs[i] = m->segs[m->missing[order[i]]]->granules;
    bool ok = slide_for(m, needs, count);
    for (size_t i = 0; ok && i < count; i++) {
        struct seg *s = m->segs[m->missing[order[i]]];
        uint32_t at = extents_find_low(&m->hbm.extents, s->granules);
        assert(at != POOL_NONE);
        m->missing_at[order[i]] = take_granules(m, at, s->granules, s->idx);
    }
    free(order);
    free(needs);
    return ok;
}

bool room_make(struct memtier *m, size_t count)
{
    return place_free(m, count) || place_planned(m, count) || place_by_sliding(m, count);
}

uint32_t room_for_page(struct memtier *m, uint32_t granules)
{
    const struct extents *x = &m->hbm.extents;
    uint32_t at = extents_find_high(x, granules);
    if (at != POOL_NONE && budget_allows(m, granules, 0))
        return at;
    list_blocks(m, true);
    at = place_one(&m->place, granules, true);
    if (at != POOL_NONE && budget_allows(m, granules, victim_granules(m))) {
        /* No demotion: the page is written at once, and a copy would still be reading. */
        evict_victims(m, false);
        return at;
    }
    m->mark++; /* nothing belongs to a reservation now */
    return slide_for(m, &granules, 1) ? extents_find_high(x, granules) : POOL_NONE;
}

/* A held segment above the limit goes to a free place below it, if nobody has its address. */
static void bring_down(struct memtier *m, struct seg *s)
{
    struct extents *x = &m->hbm.extents;
    if (m->demotes_out > 0)
        return;
    if (extents_find_low(x, s->granules) == POOL_NONE)
        (void)room_slide(m, UINT64_MAX);
    uint32_t to = extents_find_low(x, s->granules);
    if (to == POOL_NONE)
        return;
    memcpy(pool_at(&m->hbm, to), pool_at(&m->hbm, s->at), (size_t)s->bytes);
    extents_give(x, s->at);
    extents_take(x, to, s->granules, s->idx);
    s->at = to;
    m->stats.compacted_bytes += s->bytes;
}

static bool anything_above(const struct memtier *m)
{
    const struct extents *x = &m->hbm.extents;
    uint32_t end = (uint32_t)(m->hbm.usable_bytes / POOL_GRANULE), owner;
    for (uint32_t g = 0; g < end;) {
        uint32_t count = extents_next(x, g, &owner);
        if (count > 0 && g + count > x->limit)
            return true;
        g += BASE_MAX(count, 1u);
    }
    return false;
}

void room_drain(struct memtier *m)
{
    struct extents *x = &m->hbm.extents;
    size_t candidates = 0;
    if (!m->draining)
        return;
    m->mark++; /* nothing belongs to a reservation now */
    for (size_t i = 0; i < m->segs_count; i++) {
        struct seg *s = m->segs[i];
        if (seg_evictable(s) && s->at + s->granules > x->limit)
            seg_evict(m, s, false);
    }
    /* Fewer bytes too, not only lower ones. */
    struct candidate *c = list_candidates(m, &candidates);
    for (size_t i = 0; i < candidates && x->used > x->limit; i++)
        seg_evict(m, m->segs[c[i].idx], false);
    free(c);
    for (size_t i = 0; i < m->segs_count; i++) {
        struct seg *s = m->segs[i];
        if (seg_movable(m, s) && s->at + s->granules > x->limit)
            bring_down(m, s);
    }
    m->trim_due = true;
    m->draining = x->used > x->limit || anything_above(m);
}
