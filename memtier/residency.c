/* The state machine of segments and the leases over it. Engine thread throughout; the loader's side
 * of a job is behind the rings. */
#include "memtier/residency.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Which state may follow which. RESIDENT -> ABSENT is an eviction; everything that leaves LOADING
 * does so because the loader gave the job back, except that a job not yet handed over is dropped.
 */
static const bool legal[SEG_STATES][SEG_STATES] = {
    [SEG_ABSENT] = {[SEG_LOADING] = true, [SEG_RESIDENT] = true}, /* the second: a page opened */
    [SEG_LOADING] = {[SEG_RESIDENT] = true, [SEG_CANCELLING] = true, [SEG_FAILED] = true},
    [SEG_CANCELLING] =
        {[SEG_LOADING] = true, [SEG_RESIDENT] = true, [SEG_ABSENT] = true, [SEG_FAILED] = true},
    [SEG_RESIDENT] = {[SEG_ABSENT] = true},
    [SEG_FAILED] = {[SEG_LOADING] = true, [SEG_ABSENT] = true}, /* the second: a page dropped */
};

void seg_move(struct seg *s, enum seg_state to)
{
    assert(legal[s->state][to]);
    s->state = to;
}

void tally(struct memtier *m, const struct seg *s, int sign)
{
    if (s->state == SEG_LOADING)
        m->stats.waiters += (uint64_t)((int64_t)sign * s->pins);
    if (s->state == SEG_RESIDENT)
        m->stats.segments_resident += (uint64_t)(int64_t)sign;
    if (!seg_has_memory(s))
        return;
    uint64_t bytes = (uint64_t)((int64_t)sign * (int64_t)seg_footprint(s));
    m->stats.bytes_by_kind[s->kind] += bytes;
    if (s->is_page && s->pins > 0) {
        m->stats.pages += (uint64_t)(int64_t)sign;
        m->stats.page_bytes += bytes;
    } else if (s->is_page) {
        m->stats.pages_idle += (uint64_t)(int64_t)sign;
    }
    if (s->pins > 0)
        m->stats.hbm_pinned += bytes;
    if (s->holds > 0)
        m->stats.hbm_held += bytes;
    if (s->pins > 0 || s->holds > 0)
        m->fixed_bytes += bytes;
}

void publish_stats(struct memtier *m)
{
    m->stats.hbm_budget = (uint64_t)m->hbm.extents.limit * POOL_GRANULE;
    m->stats.hbm_used = (uint64_t)m->hbm.extents.used * POOL_GRANULE;
    m->stats.ddr_budget = (uint64_t)m->ddr.extents.limit * POOL_GRANULE;
    m->stats.ddr_used = (uint64_t)m->ddr.extents.used * POOL_GRANULE;
    if (m->free_changed) {
        m->free_changed = false;
        m->stats.largest_free = (uint64_t)extents_largest(&m->hbm.extents) * POOL_GRANULE;
    }
    m->stats.jobs_out = m->jobs_out - m->spill.out; /* nobody waits for writes */
    m->stats.writes_out = m->spill.out;
    assert(m->draining || m->hbm.extents.used <= m->hbm.extents.limit);
    assert(m->ddr.extents.used <= m->ddr.extents.limit);
    lock_take(&m->lock);
    /* Everything before the histograms: 2.6 KiB each that need not move on every call. */
    memcpy(&m->shown, &m->stats, offsetof(struct memtier_stats, load_hist));
    if (m->copied) {
        m->shown.promote_hist = m->stats.promote_hist;
        m->shown.demote_hist = m->stats.demote_hist;
        m->copied = false;
    }
    lock_drop(&m->lock);
}

void seg_free_memory(struct memtier *m, struct seg *s, enum seg_state to)
{
    tally(m, s, -1);
    extents_give(&m->hbm.extents, s->at);
    m->free_changed = true;
    seg_move(s, to);
    tally(m, s, 1);
}

/* ---- loads ---- */

static void submit(struct memtier *m, struct seg *s)
{
    s->submitted = true;
    loader_submit(m->loader, &s->load);
    m->jobs_out++;
}

static void submit_waiting(struct memtier *m)
{
    while (m->waiting != NULL && m->jobs_out < JOBS_MAX) {
        struct seg *s = m->waiting;
        m->waiting = s->next_waiting;
        s->next_waiting = NULL;
        submit(m, s);
    }
}

static void submit_or_wait(struct memtier *m, struct seg *s)
{
    s->submitted = false;
    s->next_waiting = NULL;
    if (m->waiting == NULL)
        m->waiting = s;
    else
        m->waiting_tail->next_waiting = s;
    m->waiting_tail = s;
    submit_waiting(m);
}

static bool wants_check(const struct memtier *m, const struct seg *s)
{
    return m->opt.verify == MEMTIER_VERIFY_ALWAYS ||
           (m->opt.verify == MEMTIER_VERIFY_FIRST && !s->verified);
}

void seg_start_load(struct memtier *m, struct seg *s, bool prefetch)
{
    tally(m, s, -1);
    seg_move(s, SEG_LOADING);
    tally(m, s, 1);
    s->from = s->ddr != DDR_NONE ? MEMTIER_DDR : MEMTIER_NVME;
    s->prefetched = prefetch;
    s->load = (struct load_job){
        .kind = s->from == MEMTIER_DDR ? JOB_COPY : JOB_READ,
        .owner = s,
        .file = s->file,
        .file_offset = s->file_offset,
        .bytes = s->bytes,
        .dst = pool_at(&m->hbm, s->at),
        .src = s->from == MEMTIER_DDR ? pool_at(&m->ddr, s->ddr_at) : NULL,
        .hash = s->hash,
        .check = s->from == MEMTIER_NVME && wants_check(m, s),
        .prefetch = prefetch,
        .submit_ns = clock_ns(),
    };
    submit_or_wait(m, s);
}

static void set_wish(_Atomic bool *flag, bool value)
{
    atomic_store_explicit(flag, value, memory_order_relaxed); /* pairs with wish() in loader.c */
}

static void unlink_waiting(struct memtier *m, struct seg *s)
{
    struct seg *before = NULL;
    for (struct seg *at = m->waiting; at != s; at = at->next_waiting)
        before = at;
    if (before == NULL)
        m->waiting = s->next_waiting;
    else
        before->next_waiting = s->next_waiting;
    if (m->waiting_tail == s)
        m->waiting_tail = before;
}

/* Nobody waits for the load any more. */
void seg_maybe_cancel(struct memtier *m, struct seg *s)
{
    if (s->state != SEG_LOADING || s->pins > 0 || s->holds > 0)
        return;
    tally(m, s, -1);
    seg_move(s, SEG_CANCELLING);
    tally(m, s, 1);
    if (s->submitted) {
        set_wish(&s->load.cancel, true);
        loader_wake(m->loader);
        return;
    }
    unlink_waiting(m, s);
    m->stats.cancelled++;
    seg_free_memory(m, s, SEG_ABSENT);
}

/* Wanted again before the loader gave it back. If it comes back cancelled it is sent again. */
static void seg_revive(struct memtier *m, struct seg *s)
{
    tally(m, s, -1);
    if (s->state == SEG_CANCELLING) {
        seg_move(s, SEG_LOADING);
        set_wish(&s->load.cancel, false);
    }
    tally(m, s, 1);
    if (s->prefetched) {
        set_wish(&s->load.urgent, true);
        loader_wake(m->loader);
    }
}

static void note_use_of_prefetch(struct memtier *m, struct seg *s)
{
    if (!s->prefetched)
        return;
    s->prefetched = false;
    m->stats.prefetch_used++;
    m->prefetch_used_recent++;
}

/* ---- answers of the loader ---- */

static void load_done(struct memtier *m, struct seg *s)
{
    if (s->is_page)
        spill_used(s);
    tally(m, s, -1);
    seg_move(s, SEG_RESIDENT);
    tally(m, s, 1);
    s->arrived_ns = s->load.done_ns;
    s->resident_ns = m->now_ns;
    s->verified = s->verified || s->load.check;
    free(s->why);
    s->why = NULL;
    if (s->is_page)
        page_idle(m, s); /* nobody waited for it any more */
    if (s->from != MEMTIER_DDR)
        return;
    m->stats.promotions++;
    m->stats.promote_bytes += s->bytes;
    hist_add(&m->stats.promote_hist, s->load.done_ns - s->load.submit_ns);
    m->copied = true;
}

static void load_failed(struct memtier *m, struct seg *s)
{
    free(s->why);
    s->why = s->load.why;
    s->failed_at = ++m->fail_serial;
    s->prefetched = false;
    m->stats.failed++;
    seg_free_memory(m, s, SEG_FAILED);
}

static void load_cancelled(struct memtier *m, struct seg *s)
{
    if (s->state == SEG_LOADING) {
        /* Revived meanwhile: the place is still ours, read again. */
        set_wish(&s->load.cancel, false);
        submit_or_wait(m, s);
        return;
    }
    m->stats.cancelled++;
    if (s->prefetched) {
        s->prefetched = false;
        m->stats.prefetch_wasted++;
    }
    seg_free_memory(m, s, SEG_ABSENT);
}

static void take_answer(struct memtier *m, struct load_job *job)
{
    m->jobs_out--;
    if (job == &m->forget) {
        m->forget_out = false;
        return;
    }
    struct seg *s = job->owner;
    if (job == &s->demote) {
        if (s->is_page)
            spill_written(m, s);
        else
            room_demote_done(m, s);
        return;
    }
    s->submitted = false;
    if (job->result == JOB_DONE)
        load_done(m, s);
    else if (job->result == JOB_FAILED)
        load_failed(m, s);
    else
        load_cancelled(m, s);
}

void trim_if_quiet(struct memtier *m)
{
    if (!m->trim_due || m->forget_out || m->demotes_out > 0)
        return;
    m->trim_due = false;
    pool_trim(&m->hbm);
}

void memtier_poll(struct memtier *m)
{
    bool any = false;
    spill_clean(m);
    if (!loader_pending(m->loader))
        return;
    for (struct load_job *job = loader_next(m->loader); job != NULL; job = loader_next(m->loader)) {
        take_answer(m, job);
        any = true;
    }
    if (!any)
        return;
    m->load_rate = loader_rate(m->loader);
    submit_waiting(m);
    room_drain(m);
    trim_if_quiet(m);
    publish_stats(m);
}

/* ---- leases ---- */

void leases_init(struct memtier *m, size_t leases, size_t segs_each)
{
    for (size_t i = 0; i < leases; i++) {
        struct memtier_lease *l = mem_alloc(sizeof(*l));
        l->segs = mem_array(BASE_MAX(segs_each, (size_t)1), sizeof(*l->segs));
        l->cap = segs_each;
        l->m = m;
        l->next_free = m->free_leases;
        m->free_leases = l;
    }
}

static struct memtier_lease *lease_take(struct memtier *m, size_t count)
{
    if (m->free_leases == NULL)
        leases_init(m, 8, count);
    struct memtier_lease *l = m->free_leases;
    m->free_leases = l->next_free;
    if (l->cap < count) {
        l->segs = mem_grow(l->segs, count, sizeof(*l->segs));
        l->cap = count;
    }
    l->next_free = NULL;
    l->count = count;
    l->ready = 0;
    l->missed = false;
    l->load_bytes = 0;
    l->origin = MEMTIER_HBM;
    l->fail_serial = m->fail_serial;
    m->leases_out++;
    return l;
}

static void lease_give(struct memtier *m, struct memtier_lease *l)
{
    l->next_free = m->free_leases;
    m->free_leases = l;
    m->leases_out--;
}

static void unpin(struct memtier *m, struct seg *s)
{
    assert(s->pins > 0);
    tally(m, s, -1);
    s->pins--;
    tally(m, s, 1);
}

/* Unpin each segment of the lease once. */
static void unpin_all(struct memtier *m, const struct memtier_lease *l, bool cancel)
{
    m->mark++;
    for (size_t i = 0; i < l->count; i++) {
        struct seg *s = m->segs[l->segs[i]];
        if (s->mark == m->mark)
            continue;
        s->mark = m->mark;
        unpin(m, s);
        if (cancel)
            seg_maybe_cancel(m, s);
        if (s->is_page)
            page_idle(m, s);
    }
}

/* Pin every segment once, so that planning treats what we already have as fixed, and collect those
 * that need memory. Nothing else is changed yet. */
static size_t pin_all(struct memtier *m, struct memtier_lease *l, const uint32_t *segs)
{
    size_t missing = 0;
    m->mark++;
    for (size_t i = 0; i < l->count; i++) {
        struct seg *s = m->segs[segs[i]];
        l->segs[i] = segs[i];
        if (s->mark == m->mark)
            continue;
        s->mark = m->mark;
        tally(m, s, -1);
        s->pins++;
        tally(m, s, 1);
        if (!seg_has_memory(s))
            m->missing[missing++] = s->idx;
    }
    return missing;
}

static enum err_code refuse(struct memtier *m, const struct memtier_lease *l, struct err *e)
{
    uint64_t want = 0, need = 0, held = 0, budget = (uint64_t)m->hbm.extents.limit * POOL_GRANULE;
    char a[32], b[32], c[32], d[32];
    for (size_t i = 0; i < m->segs_count; i++) {
        const struct seg *s = m->segs[i];
        if (s->mark == m->mark)
            want += seg_footprint(s), need += seg_has_memory(s) ? 0 : seg_footprint(s);
        else if (s->holds > 0 && seg_has_memory(s))
            held += seg_footprint(s);
    }
    size_format(want, a, sizeof(a));
    size_format(budget, b, sizeof(b));
    size_format(held, c, sizeof(c));
    if (want + held > budget)
        return err_set_param(e, ERR_NO_MEMORY, "tiers.hbm",
                             "%zu segments need %s, but of the hbm budget of %s %s are held: raise "
                             "tiers.hbm or hold less",
                             l->count, a, b, c);
    size_format(need, c, sizeof(c));
    return err_set(e, ERR_BUSY,
                   "%s of %s do not fit now: %s of the hbm budget of %s are pinned, held or pages",
                   c, a, size_format(m->fixed_bytes, d, sizeof(d)), b);
}

/* Loads that nobody asked for give way; the caller tries again when they have. */
static void cancel_prefetches(struct memtier *m)
{
    for (size_t i = 0; i < m->segs_count; i++) {
        if (m->segs[i]->prefetched)
            seg_maybe_cancel(m, m->segs[i]);
    }
}

static void count_use(struct memtier *m, struct seg *s)
{
    s->uses = policy_decay(s->uses, m->seq - s->used_seq) + 1;
    s->used_seq = m->seq;
}

void memtier_demand(struct memtier *m, const uint32_t *segs, size_t count, int change)
{
    m->seq += change > 0 ? 1 : 0;
    for (size_t i = 0; i < count; i++) {
        assert(segs[i] < m->segs_count);
        struct seg *s = m->segs[segs[i]];
        assert(change >= 0 || s->queued >= (uint32_t)-change);
        s->queued += (uint32_t)change;
        if (change > 0)
            count_use(m, s);
    }
}

/* A reservation of what is demanded was counted when it was. */
static bool counts_as_use(const struct memtier *m, const struct memtier_lease *l)
{
    for (size_t i = 0; i < l->count; i++) {
        if (m->segs[l->segs[i]]->queued == 0)
            return true;
    }
    return false;
}

/* Everything has its place now: account, start or revive the loads, in the order given. */
static void begin(struct memtier *m, struct memtier_lease *l)
{
    m->mark++;
    m->seq += counts_as_use(m, l) ? 1 : 0;
    for (size_t i = 0; i < l->count; i++) {
        struct seg *s = m->segs[l->segs[i]];
        if (s->mark == m->mark)
            continue;
        s->mark = m->mark;
        bool hit = s->state == SEG_RESIDENT;
        m->stats.hits += hit;
        m->stats.misses += !hit;
        if (!hit) {
            l->missed = true;
            l->load_bytes += s->bytes;
            if (seg_has_memory(s))
                seg_revive(m, s);
            else
                seg_start_load(m, s, false);
            if (s->from > l->origin)
                l->origin = s->from;
            m->stats.ddr_hits += s->from == MEMTIER_DDR;
            m->stats.ddr_misses += s->from != MEMTIER_DDR;
        }
        note_use_of_prefetch(m, s);
        if (s->queued == 0)
            count_use(m, s);
        s->used_ns = m->now_ns;
    }
}

static bool grow_missing(struct memtier *m, size_t count)
{
    if (count > m->missing_cap) {
        m->missing = mem_grow(m->missing, count, sizeof(*m->missing));
        m->missing_at = mem_grow(m->missing_at, count, sizeof(*m->missing_at));
        m->missing_cap = count;
    }
    return true;
}

enum err_code memtier_reserve(struct memtier *m, const uint32_t *segs, size_t count,
                              uint64_t now_ns, struct memtier_lease **ret, struct err *e)
{
    for (size_t i = 0; i < count; i++) {
        if (segs[i] >= m->segs_count)
            return err_set(e, ERR_INVALID, "there is no segment %" PRIu32 " (of %zu)", segs[i],
                           m->segs_count);
    }
    m->now_ns = BASE_MAX(m->now_ns, now_ns);
    (void)grow_missing(m, count);
    struct memtier_lease *l = lease_take(m, count);
    l->reserve_ns = now_ns;
    size_t missing = pin_all(m, l, segs);
    if (missing > 0 && !room_make(m, missing)) {
        enum err_code rc = refuse(m, l, e);
        unpin_all(m, l, false);
        lease_give(m, l);
        cancel_prefetches(m);
        publish_stats(m);
        return rc;
    }
    for (size_t i = 0; i < missing; i++)
        m->segs[m->missing[i]]->at = m->missing_at[i];
    begin(m, l);
    publish_stats(m);
    *ret = l;
    return ERR_OK;
}

void memtier_release(struct memtier *m, struct memtier_lease **lp)
{
    struct memtier_lease *l = *lp;
    if (l == NULL)
        return;
    unpin_all(m, l, true);
    lease_give(m, l);
    room_drain(m);
    trim_if_quiet(m);
    publish_stats(m);
    *lp = NULL;
}

size_t memtier_lease_ready(const struct memtier_lease *l)
{
    struct memtier_lease *own =
        (struct memtier_lease *)l; /* a remembered position, no visible state */
    while (own->ready < own->count && l->m->segs[l->segs[own->ready]]->state == SEG_RESIDENT)
        own->ready++;
    return own->ready;
}

size_t memtier_lease_count(const struct memtier_lease *l)
{
    return l->count;
}

bool memtier_lease_ok(const struct memtier_lease *l, struct err *e)
{
    if (l->m->fail_serial == l->fail_serial)
        return true;
    for (size_t i = 0; i < l->count; i++) {
        const struct seg *s = l->m->segs[l->segs[i]];
        if (s->failed_at <= l->fail_serial || s->why == NULL)
            continue;
        if (e != NULL) {
            *e = *s->why;
            e->code = ERR_LOAD_FAILED;
        }
        return false;
    }
    return true;
}

uint64_t memtier_lease_load_bytes(const struct memtier_lease *l)
{
    return l->load_bytes;
}

uint64_t memtier_lease_ready_ns(const struct memtier_lease *l)
{
    uint64_t last = 0;
    if (memtier_lease_ready(l) < l->count)
        return 0;
    if (!l->missed)
        return l->reserve_ns;
    for (size_t i = 0; i < l->count; i++)
        last = BASE_MAX(last, l->m->segs[l->segs[i]]->arrived_ns);
    return last;
}

uint64_t memtier_lease_missing_bytes(const struct memtier_lease *l)
{
    uint64_t sum = 0;
    for (size_t i = memtier_lease_ready(l); i < l->count; i++) {
        const struct seg *s = l->m->segs[l->segs[i]];
        sum += s->state == SEG_RESIDENT ? 0 : s->bytes;
    }
    return BASE_MIN(sum, l->load_bytes);
}

enum memtier_tier memtier_lease_origin(const struct memtier_lease *l)
{
    return l->origin;
}

const void *memtier_ptr(const struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count);
    const struct seg *s = m->segs[seg];
    assert(s->state == SEG_RESIDENT && s->pins > 0);
    return pool_at(&m->hbm, s->at);
}
