/* A fixed table of eight-way sets; in a full set the oldest entry goes. What is forgotten costs a
 * fresh decision, nothing more. */
#include "daemon/conversations.h"

#include <stdlib.h>
#include <string.h>

#define SETS 512
#define WAYS 8

struct entry {
    struct conversation v;
    uint64_t noted; /* 0 = free */
};

struct conversations {
    pthread_mutex_t mutex; /* guards the rest; held for a copy */
    uint64_t clock;
    struct entry entries[SETS][WAYS];
};

struct conversations *conversations_open(void)
{
    struct conversations *c = mem_alloc(sizeof(*c));
    pthread_mutex_init(&c->mutex, NULL);
    return c;
}

void conversations_close(struct conversations **c)
{
    if (*c == NULL)
        return;
    pthread_mutex_destroy(&(*c)->mutex);
    free(*c);
    *c = NULL;
}

static struct entry *find_entry(struct conversations *c, uint64_t key)
{
    struct entry *set = c->entries[key % SETS];
    for (size_t i = 0; i < WAYS; i++)
        if (set[i].noted != 0 && set[i].v.key == key)
            return &set[i];
    return NULL;
}

bool conversations_find(struct conversations *c, uint64_t key, struct conversation *ret)
{
    pthread_mutex_lock(&c->mutex);
    const struct entry *e = find_entry(c, key);
    if (e != NULL)
        *ret = e->v;
    pthread_mutex_unlock(&c->mutex);
    return e != NULL;
}

void conversations_note(struct conversations *c, const struct conversation *v)
{
    pthread_mutex_lock(&c->mutex);
    struct entry *e = find_entry(c, v->key), *set = c->entries[v->key % SETS];
    for (size_t i = 0; e == NULL && i < WAYS; i++)
        if (set[i].noted == 0)
            e = &set[i];
    if (e == NULL) {
        e = &set[0];
        for (size_t i = 1; i < WAYS; i++)
            if (set[i].noted < e->noted)
                e = &set[i];
    }
    *e = (struct entry){.v = *v, .noted = ++c->clock};
    pthread_mutex_unlock(&c->mutex);
}

uint64_t conversations_key_turns(const struct router_turn *turns, size_t count)
{
    uint64_t key = count;
    for (size_t i = 0; i < count; i++)
        key = hash64_of(turns[i].text, turns[i].len, key);
    return key;
}

uint64_t conversations_key_name(const char *kind, const char *name)
{
    return hash64_of(name, strlen(name), hash64_of(kind, strlen(kind), 1));
}
