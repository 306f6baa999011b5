/* The table of KV pages: two chained hash tables over the named ones, by name and by parent.
 * Records come from blocks that are only freed at the end; tables grow when sequences open, never
 * while they run. */
#include "experts/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_PAGES 256
/* Children of one page that are compared for a partial match: a system prompt has a child per
 * conversation, the newest are the likeliest. */
#define CHILDREN_MAX 64

struct kv_block {
    struct kv_block *next;
    int32_t *tokens;
    struct kv_page pages[BLOCK_PAGES];
};

struct kv_cache {
    struct memtier *memtier;
    uint32_t page_tokens;
    struct kv_block *blocks;
    struct kv_page *free;
    size_t free_count, count;
    struct kv_page **by_name, **by_parent; /* [buckets], a power of two >= count */
    size_t buckets;
    unsigned char *key; /* a parent and the tokens of a page */
};

static size_t bucket_of(const struct kv_cache *c, struct hash128 h)
{
    return (size_t)h.lo & (c->buckets - 1);
}

/* ---- links ---- */

static void link_page(struct kv_cache *c, struct kv_page *p)
{
    struct kv_page **name = &c->by_name[bucket_of(c, p->name)],
                   **child = &c->by_parent[bucket_of(c, p->parent)];
    p->next_name = *name;
    p->prev_name = name;
    if (*name)
        (*name)->prev_name = &p->next_name;
    *name = p;
    p->next_child = *child;
    p->prev_child = child;
    if (*child)
        (*child)->prev_child = &p->next_child;
    *child = p;
}

static void unlink_page(struct kv_page *p)
{
    *p->prev_name = p->next_name;
    if (p->next_name)
        p->next_name->prev_name = p->prev_name;
    *p->prev_child = p->next_child;
    if (p->next_child)
        p->next_child->prev_child = p->prev_child;
}

static void give_record(struct kv_cache *c, struct kv_page *p)
{
    p->count = 0;
    p->next_name = c->free;
    c->free = p;
    c->free_count++;
}

/* memtier evicted an idle page. */
static void page_gone(void *ctx, void *owner)
{
    struct kv_page *p = owner;
    assert(p->refs == 0 && p->count > 0);
    unlink_page(p);
    give_record(ctx, p);
}

/* ---- open and close ---- */

static void grow_buckets(struct kv_cache *c, size_t count)
{
    size_t buckets = BASE_MAX(c->buckets, (size_t)1024);
    while (buckets < count)
        buckets *= 2;
    if (buckets == c->buckets)
        return;
    struct kv_page **by_name = c->by_name;
    size_t before = c->buckets;
    free(c->by_parent);
    c->by_name = mem_array(buckets, sizeof(struct kv_page *));
    c->by_parent = mem_array(buckets, sizeof(struct kv_page *));
    c->buckets = buckets;
    for (size_t i = 0; i < before; i++)
        for (struct kv_page *p = by_name[i], *next; p; p = next) {
            next = p->next_name;
            link_page(c, p);
        }
    free(by_name);
}

struct kv_cache *kv_open(struct memtier *m, uint32_t page_tokens)
{
    struct kv_cache *c = mem_alloc(sizeof(*c));
    c->memtier = m;
    c->page_tokens = page_tokens;
    c->key = mem_alloc(sizeof(struct hash128) + page_tokens * sizeof(int32_t));
    grow_buckets(c, 1);
    memtier_on_page_gone(m, page_gone, c);
    return c;
}

void kv_close(struct kv_cache **cp)
{
    struct kv_cache *c = *cp;
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->buckets; i++)
        for (struct kv_page *p = c->by_name[i]; p; p = p->next_name) {
            assert(p->refs == 0);
            memtier_page_drop(c->memtier, p->mem);
        }
    memtier_on_page_gone(c->memtier, NULL, NULL);
    for (struct kv_block *b = c->blocks, *next; b; b = next) {
        next = b->next;
        free(b->tokens);
        free(b);
    }
    free(c->by_name);
    free(c->by_parent);
    free(c->key);
    free(c);
    *cp = NULL;
}

void kv_expect(struct kv_cache *c, size_t count)
{
    memtier_page_expect(c->memtier, count);
    while (c->free_count < count) {
        struct kv_block *b = mem_alloc(sizeof(*b));
        b->tokens = mem_array((size_t)BLOCK_PAGES * c->page_tokens, sizeof(*b->tokens));
        b->next = c->blocks;
        c->blocks = b;
        for (size_t i = 0; i < BLOCK_PAGES; i++) {
            b->pages[i].tokens = b->tokens + i * c->page_tokens;
            give_record(c, &b->pages[i]);
        }
        c->count += BLOCK_PAGES;
    }
    grow_buckets(c, c->count);
}

/* ---- pages ---- */

struct kv_page *kv_page_open(struct kv_cache *c, size_t bytes)
{
    uint32_t mem = memtier_page_open(c->memtier, bytes);
    if (mem == UINT32_MAX)
        return NULL;
    kv_expect(c, 1);
    struct kv_page *p = c->free;
    c->free = p->next_name;
    c->free_count--;
    p->mem = mem;
    p->refs = 1;
    return p;
}

void *kv_page_data(const struct kv_cache *c, const struct kv_page *p)
{
    return memtier_page_ptr(c->memtier, p->mem);
}

void kv_page_ref(struct kv_cache *c, struct kv_page *p)
{
    memtier_page_pin(c->memtier, p->mem);
    p->refs++;
}

void kv_page_unref(struct kv_cache *c, struct kv_page *p)
{
    assert(p->refs > 0);
    p->refs--;
    bool gone = p->refs == 0 && p->count == 0;
    memtier_page_unpin(c->memtier, p->mem);
    if (gone)
        give_record(c, p);
}

/* ---- names ---- */

static struct hash128 name_of(struct kv_cache *c, struct hash128 parent, const int32_t *tokens,
                              uint32_t count)
{
    memcpy(c->key, &parent, sizeof(parent));
    memcpy(c->key + sizeof(parent), tokens, count * sizeof(*tokens));
    return hash128_of(c->key, sizeof(parent) + count * sizeof(*tokens), 0);
}

static struct kv_page *find_named(const struct kv_cache *c, struct hash128 name)
{
    for (struct kv_page *p = c->by_name[bucket_of(c, name)]; p; p = p->next_name)
        if (hash128_equal(p->name, name))
            return p;
    return NULL;
}

/* One that is in the spill file only: nobody will ask for it again. */
static void forget(struct kv_cache *c, struct kv_page *p)
{
    assert(p->refs == 0);
    unlink_page(p);
    memtier_page_drop(c->memtier, p->mem);
    give_record(c, p);
}

struct kv_page *kv_find(struct kv_cache *c, struct hash128 parent, const int32_t *tokens)
{
    struct kv_page *p = find_named(c, name_of(c, parent, tokens, c->page_tokens));
    if (p == NULL || !memtier_page_here(c->memtier, p->mem))
        return NULL;
    kv_page_ref(c, p);
    return p;
}

size_t kv_list_chain(struct kv_cache *c, struct hash128 parent, const int32_t *tokens, size_t count, uint32_t *pages,
                     size_t *ret_away)
{
    size_t n = 0, away = 0, listed = 0;
    for (; n < count; n++) {
        struct kv_page *p = find_named(c, name_of(c, parent, tokens + n * c->page_tokens, c->page_tokens));
        if (p == NULL)
            break;
        pages[n] = p->mem;
        parent = p->name;
        if (!memtier_page_here(c->memtier, p->mem)) {
            away++;
            listed = n + 1;
        }
    }
    *ret_away = away;
    return listed;
}

void kv_forget_away(struct kv_cache *c, struct hash128 parent, const int32_t *tokens, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        struct kv_page *p = find_named(c, name_of(c, parent, tokens + n * c->page_tokens, c->page_tokens));
        if (p == NULL)
            return;
        parent = p->name;
        if (!memtier_page_here(c->memtier, p->mem))
            forget(c, p);
    }
}

static uint32_t same_tokens(const struct kv_page *p, const int32_t *tokens, uint32_t count)
{
    uint32_t n = 0;
    count = BASE_MIN(count, p->count);
    while (n < count && p->tokens[n] == tokens[n])
        n++;
    return n;
}

struct kv_page *kv_find_longest(struct kv_cache *c, struct hash128 parent, const int32_t *tokens,
                                uint32_t count, uint32_t *ret_count)
{
    struct kv_page *best = NULL;
    uint32_t seen = 0;
    *ret_count = 0;
    for (struct kv_page *p = c->by_parent[bucket_of(c, parent)]; p && seen < CHILDREN_MAX;
         p = p->next_child) {
        if (!hash128_equal(p->parent, parent) || !memtier_page_here(c->memtier, p->mem))
            continue;
        seen++;
        uint32_t n = same_tokens(p, tokens, count);
        if (n > *ret_count) {
            *ret_count = n;
            best = p;
        }
    }
    if (best)
        kv_page_ref(c, best);
    return best;
}

struct kv_page *kv_page_name(struct kv_cache *c, struct kv_page *p, const struct kv_name *n)
{
    assert(p->count == 0 && p->refs > 0 && n->count > 0);
    struct hash128 name = name_of(c, n->parent, n->tokens, n->count);
    struct kv_page *same = find_named(c, name);
    if (same && !memtier_page_here(c->memtier, same->mem)) {
        forget(c, same); /* computed again before it was read back */
        same = NULL;
    }
    if (same) {
        kv_page_ref(c, same);
        kv_page_unref(c, p);
        return same;
    }
    p->name = name;
    p->parent = n->parent;
    p->count = n->count;
    memcpy(p->tokens, n->tokens, n->count * sizeof(*n->tokens));
    link_page(c, p);
    memtier_page_seal(
        c->memtier, p->mem,
        &(struct memtier_page_worth){.remake_seconds = n->remake_seconds, .depth = n->depth}, p);
    return p;
}
