/* KV pages: segments that no file holds. Their owner in experts/ writes them, seals them when they
 * are full and gives them a name; here they are memory under the one accountant, pinned while a
 * sequence has them and evicted like any segment while none does. Records are kept for reuse: the
 * token loop opens pages and must not allocate. Engine thread. */
#include "memtier/residency.h"

#include <assert.h>
#include <stdlib.h>

void memtier_on_page_gone(struct memtier *m, memtier_page_gone_fn *gone, void *ctx)
{
    m->page_gone = gone;
    m->page_gone_ctx = ctx;
}

static void give_record(struct memtier *m, struct seg *s)
{
    assert(s->state == SEG_ABSENT && s->pins == 0);
    spill_forget(m, s);
    free(s->why);
    s->why = NULL;
    s->is_page = true;
    s->sealed = false;
    s->bytes = 0;
    s->granules = 0;
    s->owner = NULL;
    s->uses = 0;
    s->next_free = m->free_pages;
    m->free_pages = s;
    m->free_pages_count++;
}

void memtier_page_expect(struct memtier *m, size_t count)
{
    while (m->free_pages_count < count) {
        struct seg *s = seg_new(m);
        s->kind = MEMTIER_KIND_KV;
        give_record(m, s);
    }
}

static struct seg *take_record(struct memtier *m)
{
    memtier_page_expect(m, 1);
    struct seg *s = m->free_pages;
    m->free_pages = s->next_free;
    m->free_pages_count--;
    s->next_free = NULL;
    return s;
}

static void note_use(struct memtier *m, struct seg *s)
{
    s->uses = policy_decay(s->uses, m->seq - s->used_seq) + 1;
    s->used_seq = m->seq;
    s->used_ns = m->now_ns;
}

static struct seg *page_of(const struct memtier *m, uint32_t page)
{
    assert(page < m->segs_count && m->segs[page]->is_page);
    return m->segs[page];
}

uint32_t memtier_page_open(struct memtier *m, size_t bytes)
{
    uint32_t granules = pool_granules(bytes);
    if (bytes == 0 || bytes / POOL_GRANULE >= m->hbm.extents.limit + (size_t)1)
        return UINT32_MAX;
    uint32_t at = room_for_page(m, granules);
    if (at == POOL_NONE) {
        publish_stats(m);
        return UINT32_MAX;
    }
    struct seg *s = take_record(m);
    take_granules(m, at, granules, s->idx);
    s->bytes = bytes;
    s->granules = granules;
    s->at = at;
    s->resident_ns = m->now_ns;
    seg_move(s, SEG_RESIDENT);
    s->pins = 1;
    tally(m, s, 1);
    publish_stats(m);
    return s->idx;
}

void *memtier_page_ptr(const struct memtier *m, uint32_t page)
{
    const struct seg *s = page_of(m, page);
    assert(s->state == SEG_RESIDENT && s->pins > 0);
    return pool_at(&m->hbm, s->at);
}

bool memtier_page_here(const struct memtier *m, uint32_t page)
{
    return page_of(m, page)->state == SEG_RESIDENT;
}

void memtier_page_pin(struct memtier *m, uint32_t page)
{
    struct seg *s = page_of(m, page);
    assert(s->state == SEG_RESIDENT);
    spill_used(s);
    tally(m, s, -1);
    s->pins++;
    tally(m, s, 1);
    note_use(m, s);
    publish_stats(m);
}

void memtier_page_seal(struct memtier *m, uint32_t page, const struct memtier_page_worth *worth,
                       void *owner)
{
    struct seg *s = page_of(m, page);
    assert(s->pins > 0);
    s->sealed = true;
    s->remake_seconds = worth->remake_seconds;
    s->depth = worth->depth;
    s->owner = owner;
}

static void free_page(struct memtier *m, struct seg *s)
{
    seg_free_memory(m, s, SEG_ABSENT);
    give_record(m, s);
    room_drain(m);
    trim_if_quiet(m);
}

void page_idle(struct memtier *m, struct seg *s)
{
    if (s->state != SEG_RESIDENT || s->pins > 0)
        return;
    if (!s->sealed) {
        free_page(m, s);
        return;
    }
    spill_idle(m, s);
    if (m->draining)
        room_drain(m);
}

void page_unpin(struct memtier *m, struct seg *s)
{
    assert(s->pins > 0);
    tally(m, s, -1);
    s->pins--;
    tally(m, s, 1);
    page_idle(m, s);
}

void memtier_page_unpin(struct memtier *m, uint32_t page)
{
    struct seg *s = page_of(m, page);
    note_use(m, s);
    page_unpin(m, s);
    publish_stats(m);
}

/* A page that is being written or read goes when that is over. */
void memtier_page_drop(struct memtier *m, uint32_t page)
{
    struct seg *s = page_of(m, page);
    s->owner = NULL;
    if (s->spill == SPILL_WRITING || s->state == SEG_LOADING || s->state == SEG_CANCELLING) {
        s->sealed = false;
        return;
    }
    assert(s->pins == 0 && s->sealed);
    if (s->state == SEG_RESIDENT) {
        free_page(m, s);
    } else {
        if (s->state == SEG_FAILED)
            seg_move(s, SEG_ABSENT);
        give_record(m, s);
    }
    publish_stats(m);
}

void page_gone_for_good(struct memtier *m, struct seg *s)
{
    if (m->page_gone != NULL && s->owner != NULL)
        m->page_gone(m->page_gone_ctx, s->owner);
    give_record(m, s);
}

void page_evicted(struct memtier *m, struct seg *s)
{
    if (!spill_evicted(m, s))
        page_gone_for_good(m, s);
}

size_t memtier_page_room(const struct memtier *m, size_t bytes)
{
    const struct extents *x = &m->hbm.extents;
    uint32_t granules = pool_granules(bytes), run = 0, evictable = 0, count, owner;
    size_t room = 0;
    if (granules == 0)
        return 0;
    for (uint32_t g = 0; g < x->limit; g += count) {
        count = extents_next(x, g, &owner);
        bool leaves = owner != POOL_NONE && seg_evictable(m->segs[owner]);
        bool ours = count > 0 && g + count <= x->limit && (owner == POOL_NONE || leaves);
        count = BASE_MAX(count, 1u);
        evictable += leaves ? count : 0;
        if (ours) {
            run += count;
            continue;
        }
        room += run / granules;
        run = 0;
    }
    /* After a shrink, blocks above the limit count against it. */
    uint32_t stay = x->used - evictable;
    size_t budget = stay < x->limit ? (x->limit - stay) / granules : 0;
    return BASE_MIN(room + run / granules, budget);
}
