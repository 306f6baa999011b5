/* Opening and closing the tiers, the table of segments, holds, pages, prefetch, budget and figures.
 * The state machine and leases are in residency.c, making room in room.c. */
#include "memtier/residency.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LEASES 64
#define LEASE_SEGS_MIN 256
/* A prefetch budget in segments: what is asked for beyond it is simply not begun. */
#define PREFETCH_OUT_MAX 256
#define PREFETCH_JUDGED                                                                            \
    16 /* outcomes before precision counts; halved at 64 so that it stays recent */
#define PREFETCH_TRIAL 16 /* while off, one call in so many is let through */

/* ---- the table ---- */

static size_t slot_of(const struct memtier *m, struct hash128 h)
{
    size_t at = (size_t)(h.lo ^ (h.hi >> 7)) & (m->slots_count - 1);
    while (m->slots[at] != UINT32_MAX && !hash128_equal(m->segs[m->slots[at]]->hash, h))
        at = (at + 1) & (m->slots_count - 1);
    return at;
}

static void grow_slots(struct memtier *m, size_t segs)
{
    if (segs * 2 <= m->slots_count)
        return;
    size_t count = 64;
    while (count < segs * 2)
        count *= 2;
    free(m->slots);
    m->slots = mem_array(count, sizeof(*m->slots));
    m->slots_count = count;
    memset(m->slots, 0xff, count * sizeof(*m->slots));
    for (size_t i = 0; i < m->segs_count; i++) {
        if (!m->segs[i]->is_page)
            m->slots[slot_of(m, m->segs[i]->hash)] = (uint32_t)i;
    }
}

/* Segments are allocated in blocks whose address stays: jobs out at the loader point into them. */
struct seg *seg_new(struct memtier *m)
{
    if (m->segs_count == m->blocks_count * SEGS_PER_BLOCK) {
        m->blocks = mem_grow(m->blocks, m->blocks_count + 1, sizeof(struct seg *));
        m->blocks[m->blocks_count++] = mem_array(SEGS_PER_BLOCK, sizeof(struct seg));
        m->segs = mem_grow(m->segs, m->blocks_count * SEGS_PER_BLOCK, sizeof(struct seg *));
    }
    struct seg *s = &m->blocks[m->blocks_count - 1][m->segs_count % SEGS_PER_BLOCK];
    s->idx = (uint32_t)m->segs_count;
    m->segs[m->segs_count++] = s;
    return s;
}

static struct load_file *file_for(struct memtier *m, const struct store_file *f)
{
    /* Files come in order of their ids, so the new ones are found from the end. */
    for (size_t i = m->files_count; i-- > 0;) {
        if (m->files_id[i] == f->id)
            return m->files[i];
    }
    m->files = mem_grow(m->files, m->files_count + 1, sizeof(struct load_file *));
    m->files_id = mem_grow(m->files_id, m->files_count + 1, sizeof(*m->files_id));
    struct load_file *lf = mem_alloc(sizeof(*lf));
    *lf = (struct load_file){
        .path = store_data_path(m->store, f->name), .bytes = f->bytes, .fd = -1, .slot = -1};
    m->files[m->files_count] = lf;
    m->files_id[m->files_count++] = f->id;
    return lf;
}

static void take_segment(struct memtier *m, const struct store_segment *from,
                         struct load_file *file)
{
    uint32_t at = memtier_find(m, from->info.hash);
    struct seg *s = at == UINT32_MAX ? seg_new(m) : m->segs[at];
    if (at != UINT32_MAX && (s->state == SEG_LOADING || s->state == SEG_CANCELLING))
        return; /* its job has the old place; a retry of the caller's will find the new one */
    s->hash = from->info.hash;
    s->bytes = from->info.bytes;
    s->granules = pool_granules(store_padded(s->bytes));
    s->kind = from->info.kind;
    s->file = file;
    s->file_offset = from->offset;
    if (at == UINT32_MAX)
        m->slots[slot_of(m, s->hash)] = s->idx;
}

enum err_code memtier_refresh(struct memtier *m, struct err *e)
{
    enum err_code rc = memtier_store_refresh(m->store, e);
    if (rc != ERR_OK)
        return rc;
    /* The value is immutable; the lock only keeps a committing thread from freeing it under us. */
    lock_take(&m->store->lock);
    const struct store_index *x = m->store->index;
    struct load_file **files = mem_array(x->files_count + 1, sizeof(struct load_file *));
    for (size_t i = 0; i < x->files_count; i++)
        files[i] = file_for(m, &x->files[i]);
    grow_slots(m, m->segs_count + x->segments_count + 1);
    for (size_t i = 0; i < x->segments_count; i++)
        take_segment(m, &x->segments[i], files[x->segments[i].file_idx]);
    free(files);
    lock_drop(&m->store->lock);
    return ERR_OK;
}

uint32_t memtier_find(const struct memtier *m, struct hash128 hash)
{
    return m->slots_count == 0 ? UINT32_MAX : m->slots[slot_of(m, hash)];
}

uint64_t memtier_segment_bytes(const struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count);
    return m->segs[seg]->bytes;
}

const char *memtier_segment_path(const struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count);
    return m->segs[seg]->file->path;
}

uint32_t memtier_holds(const struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count);
    return m->segs[seg]->holds;
}

uint64_t memtier_footprint(uint64_t bytes)
{
    return (uint64_t)pool_granules(store_padded(bytes)) * POOL_GRANULE;
}

enum memtier_tier memtier_where(const struct memtier *m, uint32_t seg)
{
    if (seg >= m->segs_count)
        return MEMTIER_NONE;
    const struct seg *s = m->segs[seg];
    if (s->state == SEG_RESIDENT)
        return MEMTIER_HBM;
    return s->ddr == DDR_HELD ? MEMTIER_DDR : MEMTIER_NVME;
}

bool memtier_failure(const struct memtier *m, uint32_t seg, struct err *e)
{
    if (seg >= m->segs_count || m->segs[seg]->why == NULL)
        return false;
    if (e != NULL)
        *e = *m->segs[seg]->why;
    return true;
}

/* ---- open and close ---- */

static enum err_code open_pools(struct memtier *m, struct err *e)
{
    uint64_t usable = memory_bytes_usable();
    const struct memtier_options *o = &m->opt;
    char a[32], b[32];
    if (o->hbm_bytes <= usable && o->ddr_bytes > usable - o->hbm_bytes)
        return err_set_param(e, ERR_NO_MEMORY, "tiers.ddr",
                             "tiers.hbm and tiers.ddr are %s together, but this process may use %s",
                             size_format(o->hbm_bytes + o->ddr_bytes, a, sizeof(a)),
                             size_format(usable, b, sizeof(b)));
    /* Address space for the largest budget a live change can ask for. */
    enum err_code rc = pool_open(&m->hbm, o->hbm_bytes, usable, "tiers.hbm", e);
    if (rc == ERR_OK && o->ddr_bytes > 0)
        rc = pool_open(&m->ddr, o->ddr_bytes, 0, "tiers.ddr", e);
    return rc;
}

static enum err_code open_loader(struct memtier *m, struct err *e)
{
    char *measure = m->opt.measure ? memtier_store_largest_file(m->store) : NULL;
    struct loader_options opt = {
        .kind = m->opt.loader,
        .pool = &m->hbm,
        .probe_path = m->store->index_path,
        .measure_path = measure,
        .jobs_max = JOBS_MAX + 1, /* one more for JOB_FORGET */
        .fault = m->opt.fault,
        .fault_ctx = m->opt.fault_ctx,
    };
    enum err_code rc = loader_open(&opt, &m->loader, e);
    free(measure);
    return rc;
}

static enum err_code open_parts(struct memtier *m, struct err *e)
{
    const char *name = m->opt.policy == NULL ? "gdsf" : m->opt.policy;
    m->policy = policy_find(name);
    if (m->policy == NULL)
        return err_set_param(e, ERR_INVALID, "tiers.policy",
                             "there is no policy \"%s\": lru and gdsf are", name);
    enum err_code rc = open_pools(m, e);
    if (rc == ERR_OK)
        rc = memtier_refresh(m, e);
    if (rc == ERR_OK)
        rc = open_loader(m, e);
    if (rc != ERR_OK)
        return rc;
    size_t longest = LEASE_SEGS_MIN;
    for (size_t i = 0; i < memtier_store_objects(m->store); i++)
        longest = BASE_MAX(longest, memtier_store_object_at(m->store, i)->segments_count);
    leases_init(m, LEASES, 2 * longest); /* a base and what sits on it */
    m->missing_cap = 2 * longest;
    m->missing = mem_array(m->missing_cap, sizeof(*m->missing));
    m->missing_at = mem_array(m->missing_cap, sizeof(*m->missing_at));
    pool_populate(&m->hbm, loader_wake_ring(m->loader));
    if (m->ddr.base != NULL)
        pool_populate(&m->ddr, NULL);
    m->free_changed = true;
    rc = spill_open(m, e);
    if (rc != ERR_OK)
        return rc;
    publish_stats(m);
    return ERR_OK;
}

enum err_code memtier_open(const struct memtier_options *opt, struct memtier_store *store,
                           struct memtier **ret, struct err *e)
{
    struct memtier *m = mem_alloc(sizeof(*m));
    m->opt = *opt;
    m->store = store;
    m->store->attached++;
    lock_init(&m->lock, LOCK_RANK_MEMTIER, "memtier");
    enum err_code rc = open_parts(m, e);
    if (rc != ERR_OK) {
        memtier_close(&m);
        return rc;
    }
    m->opt.policy = m->policy->name; /* the caller's string may go */
    *ret = m;
    return ERR_OK;
}

static void free_segs(struct memtier *m)
{
    for (size_t i = 0; i < m->segs_count; i++) {
        free(m->segs[i]->why);
    }
    for (size_t i = 0; i < m->blocks_count; i++)
        free(m->blocks[i]);
    free(m->blocks);
    free(m->segs);
    free(m->slots);
    for (size_t i = 0; i < m->files_count; i++) {
        free(m->files[i]->path);
        free(m->files[i]);
    }
    free(m->files);
    free(m->files_id);
}

void memtier_close(struct memtier **mp)
{
    struct memtier *m = *mp;
    if (m == NULL)
        return;
    assert(m->leases_out == 0);
    pool_populate_stop(&m->hbm);
    pool_populate_stop(&m->ddr);
    loader_close(&m->loader);
    spill_close(m);
    pool_close(&m->hbm);
    pool_close(&m->ddr);
    while (m->free_leases != NULL) {
        struct memtier_lease *l = m->free_leases;
        m->free_leases = l->next_free;
        free(l->segs);
        free(l);
    }
    free_segs(m);
    place_done(&m->place);
    place_done(&m->place_ddr);
    free(m->missing);
    free(m->missing_at);
    lock_done(&m->lock);
    m->store->attached--;
    free(m);
    *mp = NULL;
}

const char *memtier_loader_text(const struct memtier *m)
{
    return loader_text(m->loader);
}

int memtier_fd(const struct memtier *m)
{
    return loader_fd(m->loader);
}

/* ---- holds and hints ---- */

void memtier_hold(struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count);
    struct seg *s = m->segs[seg];
    tally(m, s, -1);
    s->holds++;
    tally(m, s, 1);
    publish_stats(m);
}

void memtier_unhold(struct memtier *m, uint32_t seg)
{
    assert(seg < m->segs_count && m->segs[seg]->holds > 0);
    struct seg *s = m->segs[seg];
    tally(m, s, -1);
    s->holds--;
    tally(m, s, 1);
    seg_maybe_cancel(m, s);
    room_drain(m);
    trim_if_quiet(m);
    publish_stats(m);
}

/* ---- prefetch ---- */

static bool prefetch_allowed(struct memtier *m)
{
    uint64_t used = m->prefetch_used_recent, wasted = m->prefetch_wasted_recent;
    m->prefetch_calls++;
    if (used + wasted >= 64) {
        m->prefetch_used_recent /= 2;
        m->prefetch_wasted_recent /= 2;
    }
    if (used + wasted < PREFETCH_JUDGED || used >= wasted)
        return true;
    return m->prefetch_calls % PREFETCH_TRIAL == 0;
}

size_t memtier_prefetch(struct memtier *m, const uint32_t *segs, size_t count)
{
    size_t begun = 0;
    if (!prefetch_allowed(m))
        return 0;
    for (size_t i = 0; i < count && begun < PREFETCH_OUT_MAX; i++) {
        struct seg *s = segs[i] < m->segs_count ? m->segs[segs[i]] : NULL;
        if (s == NULL || s->state != SEG_ABSENT)
            continue;
        uint32_t at = extents_find_low(&m->hbm.extents, s->granules);
        if (at == POOL_NONE || m->hbm.extents.used + s->granules > m->hbm.extents.limit)
            break;
        s->at = take_granules(m, at, s->granules, s->idx);
        seg_start_load(m, s, true);
        m->stats.prefetched++;
        begun++;
    }
    publish_stats(m);
    return begun;
}

void memtier_prefetch_cancel(struct memtier *m)
{
    for (size_t i = 0; i < m->segs_count; i++) {
        if (m->segs[i]->prefetched)
            seg_maybe_cancel(m, m->segs[i]);
    }
    publish_stats(m);
}

/* ---- room ---- */

uint64_t memtier_room(const struct memtier *m)
{
    uint64_t budget = (uint64_t)m->hbm.extents.limit * POOL_GRANULE;
    return budget > m->fixed_bytes ? budget - m->fixed_bytes : 0;
}

uint64_t memtier_compact(struct memtier *m, uint64_t bytes_max)
{
    m->mark++; /* no reservation is being made */
    uint64_t moved = room_slide(m, bytes_max);
    publish_stats(m);
    return moved;
}

/* ---- the budget ---- */

static void forget_above(struct memtier *m, uint32_t limit)
{
    if (m->forget_out)
        return; /* cannot be: the caller waits for it */
    m->forget = (struct load_job){.kind = JOB_FORGET,
                                  .slab = (uint32_t)((uint64_t)limit * POOL_GRANULE / POOL_SLAB)};
    m->forget_out = true;
    m->jobs_out++;
    loader_submit(m->loader, &m->forget);
}

uint64_t memtier_held_bytes(const struct memtier *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->segs_count; i++)
        sum += m->segs[i]->holds > 0 ? seg_footprint(m->segs[i]) : 0;
    return sum;
}

enum err_code memtier_set_budget(struct memtier *m, uint64_t hbm_bytes, struct err *e)
{
    uint64_t usable = memory_bytes_usable(), held = memtier_held_bytes(m);
    uint32_t before = m->hbm.extents.limit;
    char a[32], b[32];
    if (hbm_bytes > usable)
        return err_set_param(
            e, ERR_NO_MEMORY, "tiers.hbm", "tiers.hbm cannot become %s: this process may use %s",
            size_format(hbm_bytes, a, sizeof(a)), size_format(usable, b, sizeof(b)));
    if (hbm_bytes < held)
        return err_set_param(e, ERR_NO_MEMORY, "tiers.hbm",
                             "tiers.hbm cannot become %s: %s are held",
                             size_format(hbm_bytes, a, sizeof(a)), size_format(held, b, sizeof(b)));
    if (m->forget_out)
        return err_set(e, ERR_BUSY, "the last change of tiers.hbm is still being carried out");
    pool_populate_stop(&m->hbm);
    enum err_code rc = pool_resize(&m->hbm, hbm_bytes, e);
    if (rc != ERR_OK)
        return rc;
    uint32_t limit = m->hbm.extents.limit;
    if (limit < before)
        forget_above(m, limit);
    m->draining = m->draining || limit < before;
    room_drain(m);
    trim_if_quiet(m);
    publish_stats(m);
    return ERR_OK;
}

/* ---- figures ---- */

double memtier_load_rate(const struct memtier *m)
{
    return loader_rate(m->loader);
}

void memtier_stats(const struct memtier *m, struct memtier_stats *ret)
{
    struct memtier *mutable = (struct memtier *)m; /* the lock is not part of what const promises */
    struct loader_counters c;
    lock_take(&mutable->lock);
    *ret = m->shown;
    lock_drop(&mutable->lock);
    loader_read_counters(m->loader, &c);
    ret->loads = c.loads;
    ret->load_bytes = c.load_bytes;
    ret->load_ns = c.busy_ns;
    ret->load_hist = c.hist;
    ret->load_retries = c.retries;
    ret->load_cpu_ns = c.cpu_ns;
    ret->load_rate = c.rate;
    ret->copy_bytes = c.copy_bytes;
    ret->copy_ns = c.copy_ns;
}
