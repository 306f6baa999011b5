/* Running a grammar: a deterministic automaton built while it is walked.
 *
 * A state is the sorted set of (BYTE node, stack) pairs the text so far can be at, and whether the text is
 * complete. Stacks are lists of return nodes with one copy of each, a call in last place leaves none, and a
 * pair whose rest would need more than GRAMMAR_DEPTH_MAX return nodes is not followed, so that depth never
 * ends in a blind alley. All tables are taken at open and are bounded; full, they are emptied but for the
 * present state. Pages that were never written cost nothing. */
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"

#define STACKS_MAX 32768U
#define STATES_MAX 4096U
#define PAIRS_MAX 262144U /* over all states */
#define SET_MAX 8192U     /* of one state; more possibilities than that are not followed */

#define WORK_MAX 4000000U /* pairs looked at for one mask: tens of ms, only for grammars of great ambiguity */

#define NOT_YET 0U        /* in a row of `next`: else state + 2, 1 = dead */
#define ROW_DEAD 1U

struct stack_cell {
    uint32_t node;        /* to return to */
    uint32_t below;       /* 0 = nothing below */
    uint32_t depth;
    uint32_t bytes;       /* of the shortest text that empties the stack */
};

struct pair {
    uint32_t node, stack;
};

struct dfa_state {
    uint32_t first, count; /* of pairs */
    uint32_t bytes;        /* of the shortest rest */
    bool accepts;
};

struct tables {
    struct stack_cell *cell;    /* [STACKS_MAX], 0 is the empty stack */
    uint32_t *cell_slot;        /* [2 STACKS_MAX] */
    struct dfa_state *state;    /* [STATES_MAX] */
    uint32_t *state_slot;       /* [2 STATES_MAX] state + 1 */
    struct pair *pair;          /* [PAIRS_MAX] */
    uint16_t *next;             /* [STATES_MAX, 256] */
    uint32_t cells, states, pairs;
};

struct grammar_state {
    struct grammar *grammar;    /* a reference */
    const struct grammar_vocab *vocab;
    struct grammar_mask_cache *masks;
    struct tables t;
    uint32_t now;
    bool over;                  /* an end token was accepted */
    /* Scratch of one closure. */
    struct pair *todo, *set, *kept; /* [SET_MAX] each */
    uint32_t *seen;             /* [4 SET_MAX] index into seen_pair + 1, valid for the present stamp */
    uint32_t *seen_stamp;
    struct pair *seen_pair;
    uint32_t stamp, seen_count, todo_count, set_count;
    bool set_accepts, no_room;
    uint32_t work;              /* since grammar_begin_work */
    struct stack_cell *old_cell; /* [STACKS_MAX] for grammar_flush */
    uint32_t *moved;
};

/* ---- stacks -------------------------------------------------------------------------------- */

static uint32_t mix(uint32_t a, uint32_t b)
{
    uint64_t h = ((uint64_t)a << 32 | b) * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(h >> 32) ^ (uint32_t)(h >> 13);
}

/* The one copy of `node` on top of `below`; UINT32_MAX when the table is full. */
static uint32_t stack_push(struct tables *t, const struct grammar *g, uint32_t node, uint32_t below)
{
    uint32_t at = mix(node, below) & (2 * STACKS_MAX - 1);
    for (; t->cell_slot[at] != 0; at = (at + 1) & (2 * STACKS_MAX - 1)) {
        const struct stack_cell *c = &t->cell[t->cell_slot[at]];
        if (c->node == node && c->below == below)
            return t->cell_slot[at];
    }
    if (t->cells == STACKS_MAX)
        return UINT32_MAX;
    t->cell[t->cells] =
        (struct stack_cell){node, below, t->cell[below].depth + 1,
                            BASE_MIN(t->cell[below].bytes + g->nodes[node].bytes, GRAMMAR_BYTES_MAX)};
    t->cell_slot[at] = t->cells;
    return t->cells++;
}

/* ---- closures: from pairs to the BYTE nodes they lead to without a byte ------------------------ */

static bool first_visit(struct grammar_state *s, struct pair p)
{
    uint32_t at = mix(p.node, p.stack + 1) & (4 * SET_MAX - 1);
    for (; s->seen_stamp[at] == s->stamp; at = (at + 1) & (4 * SET_MAX - 1)) {
        const struct pair *q = &s->seen_pair[s->seen[at]];
        if (q->node == p.node && q->stack == p.stack)
            return false;
    }
    if (s->seen_count == 2 * SET_MAX)
        return false;
    s->seen_stamp[at] = s->stamp;
    s->seen[at] = s->seen_count;
    s->seen_pair[s->seen_count++] = p;
    return true;
}

static void visit(struct grammar_state *s, uint32_t node, uint32_t stack)
{
    struct pair p = {node, stack};
    uint32_t height = s->grammar->nodes[node].height;
    if (height == GRAMMAR_NEVER || s->t.cell[stack].depth + height > GRAMMAR_DEPTH_MAX)
        return;
    if (s->todo_count < SET_MAX && first_visit(s, p))
        s->todo[s->todo_count++] = p;
}

static void expand(struct grammar_state *s, struct pair p)
{
    const struct gnode *n = &s->grammar->nodes[p.node];
    uint32_t stack = p.stack;
    switch ((enum gnode_kind)n->kind) {
    case GNODE_BYTE:
        if (s->set_count < SET_MAX)
            s->set[s->set_count++] = p;
        break;
    case GNODE_SPLIT:
        visit(s, n->next, stack);
        visit(s, n->arg, stack);
        break;
    case GNODE_CALL:
        if (n->next != GNODE_IDX_END)
            stack = stack_push(&s->t, s->grammar, n->next, stack);
        if (stack == UINT32_MAX)
            s->no_room = true;
        else
            visit(s, s->grammar->rules[n->arg], stack);
        break;
    case GNODE_END:
        if (stack == 0)
            s->set_accepts = true;
        else
            visit(s, s->t.cell[stack].node, s->t.cell[stack].below);
        break;
    case GNODE_FAIL:
        break;
    }
}

static void closure_begin(struct grammar_state *s)
{
    if (++s->stamp == 0) {
        memset(s->seen_stamp, 0, 4 * SET_MAX * sizeof *s->seen_stamp);
        s->stamp = 1;
    }
    s->seen_count = s->todo_count = s->set_count = 0;
    s->set_accepts = s->no_room = false;
}

static bool pair_before(struct pair a, struct pair b)
{
    return a.node != b.node ? a.node < b.node : a.stack < b.stack;
}

/* Shell's sort: in place, while qsort of the C library allocates for large arrays. */
static void sort_pairs(struct pair *p, uint32_t n)
{
    static const uint32_t gaps[] = {3548, 1577, 701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < BASE_COUNT(gaps); g++)
        for (uint32_t i = gaps[g]; i < n; i++) {
            struct pair x = p[i];
            uint32_t k = i;
            for (; k >= gaps[g] && pair_before(x, p[k - gaps[g]]); k -= gaps[g])
                p[k] = p[k - gaps[g]];
            p[k] = x;
        }
}

/* ---- states --------------------------------------------------------------------------------------- */

static uint32_t shortest_rest(const struct grammar_state *s)
{
    uint32_t least = s->set_accepts ? 0 : GRAMMAR_BYTES_MAX;
    for (uint32_t i = 0; i < s->set_count && least > 0; i++) {
        struct pair p = s->set[i];
        least = BASE_MIN(least, s->grammar->nodes[p.node].bytes + s->t.cell[p.stack].bytes);
    }
    return least;
}

/* The state of the set at hand; GRAMMAR_DEAD for none, with no_room set when a table is full. */
static uint32_t intern(struct grammar_state *s)
{
    struct tables *t = &s->t;
    if (s->no_room || (s->set_count == 0 && !s->set_accepts))
        return GRAMMAR_DEAD;
    sort_pairs(s->set, s->set_count);
    uint64_t hash = hash64_of(s->set, s->set_count * sizeof *s->set, s->set_accepts);
    uint32_t at = (uint32_t)hash & (2 * STATES_MAX - 1);
    for (; t->state_slot[at] != 0; at = (at + 1) & (2 * STATES_MAX - 1)) {
        const struct dfa_state *d = &t->state[t->state_slot[at] - 1];
        if (d->count == s->set_count && d->accepts == s->set_accepts &&
            memcmp(t->pair + d->first, s->set, d->count * sizeof *s->set) == 0)
            return t->state_slot[at] - 1;
    }
    if (t->states == STATES_MAX || t->pairs + s->set_count > PAIRS_MAX) {
        s->no_room = true;
        return GRAMMAR_DEAD;
    }
    t->state[t->states] = (struct dfa_state){t->pairs, s->set_count, shortest_rest(s), s->set_accepts};
    memcpy(t->pair + t->pairs, s->set, s->set_count * sizeof *s->set);
    t->pairs += s->set_count;
    memset(t->next + (size_t)t->states * 256, 0, 256 * sizeof *t->next);
    t->state_slot[at] = ++t->states;
    return t->states - 1;
}

static uint32_t close_set(struct grammar_state *s)
{
    while (s->todo_count > 0) {
        s->work++;
        expand(s, s->todo[--s->todo_count]);
    }
    return intern(s);
}

/* The state after `byte`, which is the same for all bytes of *lo..*hi: no range begins or ends among them. */
static uint32_t step(struct grammar_state *s, uint32_t from, unsigned byte, unsigned *lo, unsigned *hi)
{
    const struct dfa_state *d = &s->t.state[from];
    *lo = 0;
    *hi = 255;
    closure_begin(s);
    s->work += d->count + 8;
    for (uint32_t i = 0; i < d->count; i++) {
        struct pair p = s->t.pair[d->first + i];
        const struct gnode *n = &s->grammar->nodes[p.node];
        if (byte < n->lo) {
            *hi = BASE_MIN(*hi, n->lo - 1U);
        } else if (byte > n->hi) {
            *lo = BASE_MAX(*lo, n->hi + 1U);
        } else {
            *lo = BASE_MAX(*lo, n->lo);
            *hi = BASE_MIN(*hi, n->hi);
            visit(s, n->next, p.stack);
        }
    }
    return close_set(s);
}

uint32_t grammar_next(struct grammar_state *s, uint32_t from, uint8_t byte, bool *full)
{
    unsigned lo, hi;
    uint16_t *row = s->t.next + (size_t)from * 256;
    if (row[byte] == ROW_DEAD)
        return GRAMMAR_DEAD;
    if (row[byte] != NOT_YET)
        return row[byte] - 2U;
    if (s->work > WORK_MAX) /* what was not looked at is not allowed this time */
        return GRAMMAR_DEAD;
    uint32_t to = step(s, from, byte, &lo, &hi);
    if (s->no_room) {
        *full = true;
        return GRAMMAR_DEAD;
    }
    for (unsigned k = lo; k <= hi; k++)
        row[k] = (uint16_t)(to == GRAMMAR_DEAD ? ROW_DEAD : to + 2);
    return to;
}

void grammar_begin_work(struct grammar_state *s)
{
    s->work = 0;
}

uint32_t grammar_state_now(const struct grammar_state *s)
{
    return s->now;
}

bool grammar_state_accepts(const struct grammar_state *s, uint32_t state)
{
    return s->t.state[state].accepts;
}

uint32_t grammar_state_bytes(const struct grammar_state *s, uint32_t state)
{
    return s->t.state[state].bytes;
}

/* ---- emptying the tables ----------------------------------------------------------------------------- */

static void tables_clear(struct tables *t)
{
    if (t->cells > 0) { /* else as it was allocated: its pages stay untouched */
        memset(t->cell_slot, 0, 2 * STACKS_MAX * sizeof *t->cell_slot);
        memset(t->state_slot, 0, 2 * STATES_MAX * sizeof *t->state_slot);
    }
    t->cells = 1;
    t->states = t->pairs = 0;
}

/* The kept pairs with their stacks put into the emptied table. Cells are made after what is below them, so
 * one sweep downwards finds all that is needed and one upwards moves it. */
static void restore_stacks(struct grammar_state *s, uint32_t kept, uint32_t old_cells)
{
    memset(s->moved, 0, old_cells * sizeof *s->moved);
    for (uint32_t i = 0; i < kept; i++)
        s->moved[s->kept[i].stack] = 1;
    for (uint32_t c = old_cells; c-- > 1;)
        if (s->moved[c])
            s->moved[s->old_cell[c].below] = 1;
    s->moved[0] = 0;
    for (uint32_t c = 1; c < old_cells; c++)
        if (s->moved[c])
            s->moved[c] = stack_push(&s->t, s->grammar, s->old_cell[c].node, s->moved[s->old_cell[c].below]);
    for (uint32_t i = 0; i < kept; i++)
        s->kept[i].stack = s->moved[s->kept[i].stack];
}

void grammar_flush(struct grammar_state *s)
{
    struct dfa_state now = s->t.state[s->now];
    uint32_t old_cells = s->t.cells;
    memcpy(s->kept, s->t.pair + now.first, now.count * sizeof *s->kept);
    memcpy(s->old_cell, s->t.cell, old_cells * sizeof *s->old_cell);
    tables_clear(&s->t);
    restore_stacks(s, now.count, old_cells);
    closure_begin(s);
    memcpy(s->set, s->kept, now.count * sizeof *s->set);
    s->set_count = now.count;
    s->set_accepts = now.accepts;
    s->now = intern(s);
    if (s->masks != NULL)
        grammar_mask_cache_clear(s->masks);
}

/* ---- one sequence ----------------------------------------------------------------------------------------- */

void grammar_reset(struct grammar_state *s)
{
    tables_clear(&s->t);
    if (s->masks != NULL)
        grammar_mask_cache_clear(s->masks);
    closure_begin(s);
    visit(s, s->grammar->rules[s->grammar->root], 0);
    s->now = close_set(s); /* gb_finish made sure that there is a way */
    s->over = false;
}

struct grammar_state *grammar_state_open(const struct grammar *g, const struct grammar_vocab *v)
{
    struct grammar_state *s = mem_alloc(sizeof *s);
    struct tables *t = &s->t;
    s->grammar = grammar_ref((struct grammar *)g);
    s->vocab = v;
    s->masks = v != NULL ? grammar_mask_cache_open(v) : NULL;
    t->cell = mem_array(STACKS_MAX, sizeof *t->cell);
    t->cell_slot = mem_array(2 * STACKS_MAX, sizeof *t->cell_slot);
    t->state = mem_array(STATES_MAX, sizeof *t->state);
    t->state_slot = mem_array(2 * STATES_MAX, sizeof *t->state_slot);
    t->pair = mem_array(PAIRS_MAX, sizeof *t->pair);
    t->next = mem_array((size_t)STATES_MAX * 256, sizeof *t->next);
    s->todo = mem_array(SET_MAX, sizeof *s->todo);
    s->set = mem_array(SET_MAX, sizeof *s->set);
    s->kept = mem_array(SET_MAX, sizeof *s->kept);
    s->seen = mem_array(4 * SET_MAX, sizeof *s->seen);
    s->seen_stamp = mem_array(4 * SET_MAX, sizeof *s->seen_stamp);
    s->seen_pair = mem_array(2 * SET_MAX, sizeof *s->seen_pair);
    s->old_cell = mem_array(STACKS_MAX, sizeof *s->old_cell);
    s->moved = mem_array(STACKS_MAX, sizeof *s->moved);
    grammar_reset(s);
    return s;
}

void grammar_state_close(struct grammar_state **sp)
{
    struct grammar_state *s = *sp;
    *sp = NULL;
    if (s == NULL)
        return;
    grammar_mask_cache_close(&s->masks);
    grammar_unref(&s->grammar);
    free(s->t.cell);
    free(s->t.cell_slot);
    free(s->t.state);
    free(s->t.state_slot);
    free(s->t.pair);
    free(s->t.next);
    free(s->todo);
    free(s->set);
    free(s->kept);
    free(s->seen);
    free(s->seen_stamp);
    free(s->seen_pair);
    free(s->old_cell);
    free(s->moved);
    free(s);
}

bool grammar_complete(const struct grammar_state *s)
{
    return s->over || grammar_state_accepts(s, s->now);
}

static uint32_t walk(struct grammar_state *s, const char *bytes, size_t len, bool *full)
{
    uint32_t at = s->now;
    for (size_t i = 0; i < len && at != GRAMMAR_DEAD; i++)
        at = grammar_next(s, at, (uint8_t)bytes[i], full);
    return at;
}

bool grammar_accept_bytes(struct grammar_state *s, const char *bytes, size_t len)
{
    bool full = false;
    grammar_begin_work(s);
    uint32_t at = s->over ? GRAMMAR_DEAD : walk(s, bytes, len, &full);
    if (full) {
        grammar_flush(s);
        full = false;
        at = walk(s, bytes, len, &full);
    }
    if (at == GRAMMAR_DEAD)
        return false;
    s->now = at;
    return true;
}

bool grammar_accept(struct grammar_state *s, int32_t token)
{
    size_t len;
    if (grammar_vocab_is_end(s->vocab, token)) {
        s->over = grammar_complete(s);
        return s->over;
    }
    const char *bytes = grammar_vocab_bytes(s->vocab, token, &len);
    return bytes != NULL && len > 0 && grammar_accept_bytes(s, bytes, len);
}

const uint32_t *grammar_mask(struct grammar_state *s, uint32_t *ret_count)
{
    return grammar_mask_fill(s->masks, s->vocab, s, UINT32_MAX, ret_count);
}

const uint32_t *grammar_mask_within(struct grammar_state *s, uint32_t bytes_left, uint32_t *ret_count)
{
    return grammar_mask_fill(s->masks, s->vocab, s, bytes_left, ret_count);
}
