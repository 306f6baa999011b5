/* Counts of which expert follows which, one row per expert that was ever left; and a small table of
 * conversations by their number, direct-mapped, so that a turn costs a row's scan and nothing is freed. */
#include "daemon/markov.h"

#include <stdlib.h>

#define CONVERSATIONS 4096 /* a power of two; of two that fall on one place the later is remembered */
#define SEEN_MIN 4         /* turns that left an expert before anything is said of it */
#define JUDGED_MIN 16      /* before precision counts; halved at 64 so that it stays recent */
#define JUDGED_MAX 64
#define COUNT_MAX 60000    /* then a row is halved: what was long ago counts less */

struct conversation {
    uint64_t id;
    uint32_t last, foretold;
};

struct markov {
    uint32_t experts;
    uint16_t **count; /* [experts] rows [experts], NULL until used */
    uint32_t *total;  /* [experts] */
    struct conversation table[CONVERSATIONS];
    uint32_t right, judged; /* recent */
    struct markov_stats stats;
};

struct markov *markov_open(uint32_t experts)
{
    struct markov *m = mem_alloc(sizeof *m);
    m->experts = experts;
    m->count = mem_array(experts + 1, sizeof *m->count);
    m->total = mem_array(experts + 1, sizeof *m->total);
    m->stats.on = true;
    return m;
}

void markov_close(struct markov **mp)
{
    struct markov *m = *mp;
    *mp = NULL;
    if (m == NULL)
        return;
    for (uint32_t i = 0; i < m->experts; i++)
        free(m->count[i]);
    free(m->count);
    free(m->total);
    free(m);
}

static void note_step(struct markov *m, uint32_t from, uint32_t to)
{
    if (m->count[from] == NULL)
        m->count[from] = mem_array(m->experts, sizeof *m->count[from]);
    m->count[from][to]++;
    if (++m->total[from] < COUNT_MAX)
        return;
    m->total[from] = 0;
    for (uint32_t i = 0; i < m->experts; i++)
        m->total[from] += m->count[from][i] /= 2;
}

/* At least every second conversation went from here to the one it names. */
static uint32_t foretell(const struct markov *m, uint32_t from)
{
    if (m->total[from] < SEEN_MIN)
        return MARKOV_NONE;
    for (uint32_t i = 0; i < m->experts; i++)
        if (2u * m->count[from][i] >= m->total[from])
            return i;
    return MARKOV_NONE;
}

static void judge(struct markov *m, bool right)
{
    m->stats.foretold++;
    m->stats.right += right;
    m->judged++;
    m->right += right;
    if (m->judged >= JUDGED_MAX) {
        m->judged /= 2;
        m->right /= 2;
    }
    m->stats.on = m->judged < JUDGED_MIN || 2 * m->right >= m->judged;
}

uint32_t markov_turn(struct markov *m, uint64_t conversation, uint32_t expert)
{
    struct conversation *c = &m->table[(conversation ^ conversation >> 32) & (CONVERSATIONS - 1)];
    if (c->id == conversation) {
        if (c->foretold != MARKOV_NONE)
            judge(m, c->foretold == expert);
        note_step(m, c->last, expert);
    }
    uint32_t next = foretell(m, expert);
    /* Staying is no news: it is there already. */
    *c = (struct conversation){conversation, expert, next == expert ? MARKOV_NONE : next};
    return m->stats.on ? c->foretold : MARKOV_NONE;
}

void markov_stats(const struct markov *m, struct markov_stats *ret)
{
    *ret = m->stats;
}
