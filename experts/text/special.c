/* Special tokens in the text: a byte trie, leftmost match first and the longest at that place, so
 * one pass over the text finds all of them however many the vocabulary has. */
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

/* Children hang in a list: vocabularies branch at a few digits at most, but for the root, which
 * has a table because it is asked at every byte of the text. */
struct node {
    uint32_t child, sibling; /* 0 = none: node 0 is the root, nobody's child */
    int32_t id;              /* -1 = no token ends here */
    unsigned char byte;
    bool always; /* matches without parse_special */
};

struct special_trie {
    struct node *nodes;
    size_t count, cap;
    uint32_t root[256];
};

static uint32_t node_new(struct special_trie *t, unsigned char byte, uint32_t sibling)
{
    if (t->count == t->cap) {
        t->cap = t->cap == 0 ? 256 : t->cap * 2;
        t->nodes = mem_grow(t->nodes, t->cap, sizeof(*t->nodes));
    }
    t->nodes[t->count] = (struct node){.byte = byte, .sibling = sibling, .id = -1};
    return (uint32_t)t->count++;
}

static uint32_t child_of(const struct special_trie *t, uint32_t parent, unsigned char byte)
{
    uint32_t n = t->nodes[parent].child;
    while (n != 0 && t->nodes[n].byte != byte)
        n = t->nodes[n].sibling;
    return n;
}

static uint32_t child_make(struct special_trie *t, uint32_t parent, unsigned char byte)
{
    uint32_t n = child_of(t, parent, byte);
    if (n == 0) {
        n = node_new(t, byte, t->nodes[parent].child);
        t->nodes[parent].child = n;
    }
    return n;
}

static void add(struct special_trie *t, const struct token *token, int32_t id)
{
    unsigned char first = (unsigned char)token->text[0];
    if (t->root[first] == 0)
        t->root[first] = node_new(t, first, 0);
    uint32_t n = t->root[first];
    for (uint32_t i = 1; i < token->text_len; i++)
        n = child_make(t, n, (unsigned char)token->text[i]);
    t->nodes[n].id = id;
    t->nodes[n].always = token->type == TOKEN_USER;
}

struct special_trie *special_trie_open(const struct vocab *v)
{
    struct special_trie *t = mem_alloc(sizeof(*t));
    (void)node_new(t, 0, 0);
    for (int32_t id = 0; id < v->count; id++) {
        const struct token *token = &v->tokens[id];
        bool special = token->type == TOKEN_CONTROL || token->type == TOKEN_USER ||
                       token->type == TOKEN_UNKNOWN;
        if (special && token->text_len > 0)
            add(t, token, id);
    }
    return t;
}

void special_trie_close(struct special_trie **t)
{
    if (*t == NULL)
        return;
    free((*t)->nodes);
    free(*t);
    *t = NULL;
}

/* Length of the longest token that starts at text[0], 0 if none. */
static size_t match_at(const struct special_trie *t, const char *text, size_t len,
                       bool parse_special, int32_t *ret_id)
{
    size_t best = 0, pos = 0;
    uint32_t n = t->root[(unsigned char)text[0]];
    while (n != 0) {
        pos++;
        const struct node *at = &t->nodes[n];
        if (at->id >= 0 && (at->always || parse_special)) {
            best = pos;
            *ret_id = at->id;
        }
        n = pos < len ? child_of(t, n, (unsigned char)text[pos]) : 0;
    }
    return best;
}

bool special_trie_find(const struct special_trie *t, const char *text, size_t len, size_t from,
                       bool parse_special, size_t *ret_pos, size_t *ret_len, int32_t *ret_id)
{
    for (size_t pos = from; pos < len; pos++) {
        if (t->root[(unsigned char)text[pos]] == 0)
            continue;
        size_t n = match_at(t, text + pos, len - pos, parse_special, ret_id);
        if (n > 0) {
            *ret_pos = pos;
            *ret_len = n;
            return true;
        }
    }
    return false;
}
