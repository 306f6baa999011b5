/* KV pages of all sequences, and the cache of those that a later prompt may begin with. Private to
 * experts/.
 *
 * A page is memory of memtier's for page_tokens positions of every layer. While it is open it
 * belongs to one sequence, which appends to it. A full one may be named by the hash chain over
 * everything before and in it: name(page i) = XXH3-128(name(page i - 1), tokens of page i),
 * name(page -1) = root of the expert where the root names the weights and the adapters. K and V at
 * a position depend on nothing else, bit for bit (rdu/README.md), so whoever comes with the same
 * beginning takes a reference instead of computing. A page that is not full can be named too, when
 * its sequence ends: it is only ever copied from. Pages without references stay, idle, until
 * memtier needs their room. Engine thread. */
#ifndef SWITCHYARD_EXPERTS_KV_H
#define SWITCHYARD_EXPERTS_KV_H

#include "base/base.h"
#include "memtier/memtier.h"

struct kv_page {
    struct hash128 name, parent;
    int32_t *tokens; /* [page_tokens], the first `count` are set once it is named */
    uint32_t count;  /* 0 = not named */
    uint32_t refs;
    uint32_t mem; /* memtier's index */
    struct kv_page *next_name, **prev_name, *next_child,
        **prev_child; /* of its bucket; free list: next_name */
};

struct kv_cache;
struct kv_cache *kv_open(struct memtier *m, uint32_t page_tokens);
/* No page may have a reference any more. */
void kv_close(struct kv_cache **c);
/* Records for so many more pages, so that opening them allocates nothing. */
void kv_expect(struct kv_cache *c, size_t count);

/* With one reference; NULL = no room now. */
struct kv_page *kv_page_open(struct kv_cache *c, size_t bytes);
void *kv_page_data(const struct kv_cache *c, const struct kv_page *p);
void kv_page_ref(struct kv_cache *c, struct kv_page *p);
void kv_page_unref(struct kv_cache *c, struct kv_page *p);

struct kv_name {
    struct hash128 parent;
    const int32_t *tokens;
    uint32_t count;        /* tokens in the page */
    uint32_t depth;        /* pages before it */
    double remake_seconds; /* of computing it again */
};
/* Give an open page its name: it is not written to from now on. Takes over the caller's reference
 * and returns the page that carries the name with a reference for the caller: another one if the
 * same was computed twice. */
struct kv_page *kv_page_name(struct kv_cache *c, struct kv_page *p, const struct kv_name *n);

/* The page with exactly these page_tokens tokens after `parent`, with a reference; NULL = none. */
struct kv_page *kv_find(struct kv_cache *c, struct hash128 parent, const int32_t *tokens);
/* memtier's indices of the named pages that follow `parent`, as far as the last one that is in the spill file only;
 * at most `count`. Returns how many, *ret_away of them are not in hbm. */
size_t kv_list_chain(struct kv_cache *c, struct hash128 parent, const int32_t *tokens, size_t count, uint32_t *pages,
                     size_t *ret_away);
/* Those of the chain that are not in hbm could not be read back. */
void kv_forget_away(struct kv_cache *c, struct hash128 parent, const int32_t *tokens, size_t count);
/* The page after `parent` that begins with the most of `tokens`, with a reference; NULL = none
 * begins with the first. *ret_count: how many of the at most `count`. */
struct kv_page *kv_find_longest(struct kv_cache *c, struct hash128 parent, const int32_t *tokens,
                                uint32_t count, uint32_t *ret_count);

#endif
