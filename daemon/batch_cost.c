/* What an order of groups costs in loads: the pool played through, one group after another. */
#include "daemon/batch.h"

#include <stdlib.h>

/* A list of resident segments, least recently used first; 64 bits a segment, constant time a touch.
 */
struct pool {
    struct link {
        uint32_t before, after;
    } * links; /* [segments + 1]; the last one is the head */
    bool *resident, *held;
    uint32_t head;
    uint64_t used, room;
    const struct server *server;
};

static uint64_t footprint(const struct pool *m, uint32_t seg)
{
    return memtier_footprint(memtier_segment_bytes(m->server->memtier, seg));
}

static void unlink_segment(struct pool *m, uint32_t seg)
{
    struct link l = m->links[seg];
    m->links[l.before].after = l.after;
    m->links[l.after].before = l.before;
}

static void append_segment(struct pool *m, uint32_t seg)
{
    uint32_t last = m->links[m->head].before;
    m->links[seg] = (struct link){last, m->head};
    m->links[last].after = seg;
    m->links[m->head].before = seg;
}

static void make_room(struct pool *m, uint64_t bytes)
{
    for (uint32_t seg = m->links[m->head].after; m->used + bytes > m->room && seg != m->head;) {
        uint32_t next = m->links[seg].after;
        if (!m->held[seg]) {
            unlink_segment(m, seg);
            m->resident[seg] = false;
            m->used -= footprint(m, seg);
        }
        seg = next;
    }
}

/* True = it was not there. */
static bool touch(struct pool *m, uint32_t seg)
{
    bool missing = !m->resident[seg];
    if (missing) {
        make_room(m, footprint(m, seg));
        m->resident[seg] = true;
        m->used += footprint(m, seg);
    } else {
        unlink_segment(m, seg);
    }
    append_segment(m, seg);
    return missing;
}

static uint32_t segments_of(const struct server *s)
{
    uint32_t most = 0;
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        struct expert *ex = experts_at(s->experts, i);
        size_t count = 0;
        const uint32_t *segs = expert_ok(ex, NULL) ? expert_segments(ex, &count) : NULL;
        for (size_t k = 0; k < count; k++)
            most = BASE_MAX(most, segs[k] + 1);
    }
    return most;
}

static void hold_expert(struct pool *m, struct expert *ex)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    for (size_t i = 0; i < count; i++)
        m->held[segs[i]] = true;
}

static uint64_t kv_bytes(const struct server *s, const struct batch_group *g)
{
    uint64_t at_once = BASE_MIN((uint64_t)g->count, (uint64_t)s->conf->sched_max_sequences);
    return at_once * experts_kv_bytes(s->experts, g->expert, (size_t)g->tokens_max);
}

static void pool_open(struct server *s, uint64_t kv, struct pool *m)
{
    struct memtier_stats stats;
    uint32_t segments = segments_of(s);
    memtier_stats(s->memtier, &stats);
    *m = (struct pool){.links = mem_array(segments + 1, sizeof *m->links),
                       .resident = mem_array(segments + 1, sizeof *m->resident),
                       .held = mem_array(segments + 1, sizeof *m->held),
                       .head = segments,
                       .room = stats.hbm_budget - BASE_MIN(kv, stats.hbm_budget / 2),
                       .server = s};
    m->links[m->head] = (struct link){m->head, m->head};
    for (uint32_t seg = 0; seg < segments; seg++)
        if (memtier_where(s->memtier, seg) == MEMTIER_HBM) {
            m->resident[seg] = true;
            m->used += footprint(m, seg);
            append_segment(m, seg);
        }
    hold_expert(m, s->generalist);
    for (size_t i = 0; i < experts_count(s->experts); i++) {
        const struct conf_expert *conf = s->serving[i].conf;
        if (conf != NULL && conf->hold && expert_ok(experts_at(s->experts, i), NULL))
            hold_expert(m, experts_at(s->experts, i));
    }
}

static void pool_close(struct pool *m)
{
    free(m->links);
    free(m->resident);
    free(m->held);
}

void batch_cost_of(struct server *s, struct batch_group *groups, size_t count,
                   struct batch_cost *ret)
{
    struct pool m;
    uint64_t kv = 0;
    *ret = (struct batch_cost){0};
    for (size_t i = 0; i < count; i++)
        kv = BASE_MAX(kv, kv_bytes(s, &groups[i]));
    pool_open(s, kv, &m);
    for (size_t i = 0; i < count; i++) {
        size_t segs_count;
        const uint32_t *segs = expert_segments(groups[i].expert, &segs_count);
        groups[i].load_bytes = 0;
        for (size_t k = 0; k < segs_count; k++)
            if (touch(&m, segs[k])) {
                ret->segment_loads++;
                groups[i].load_bytes += memtier_segment_bytes(s->memtier, segs[k]);
            }
        ret->expert_loads += groups[i].load_bytes > 0;
        ret->bytes += groups[i].load_bytes;
    }
    pool_close(&m);
}

bool batch_cost_fits(struct server *s, const struct batch_group *a, const struct batch_group *b)
{
    struct memtier_stats stats;
    uint64_t weights = expert_footprint(a->expert) + expert_footprint(b->expert);
    memtier_stats(s->memtier, &stats);
    if (expert_base_index(a->expert) == expert_base_index(b->expert))
        return true; /* the base is there, and an adapter is small beside it */
    return stats.hbm_held + weights + kv_bytes(s, a) + kv_bytes(s, b) <= stats.hbm_budget;
}
