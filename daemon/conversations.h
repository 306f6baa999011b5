/* Which expert a conversation is with, and its last user turn, for the newest few thousand of them.
 */
#ifndef SWITCHYARD_DAEMON_CONVERSATIONS_H
#define SWITCHYARD_DAEMON_CONVERSATIONS_H

#include "router/router.h"

#define CONVERSATION_TEXT_MAX 1024

struct conversation {
    uint64_t key; /* hash of the user turns, or of a name that the client gave */
    int expert_idx;
    uint32_t text_len;
    char text[CONVERSATION_TEXT_MAX]; /* start of the last user turn */
};
struct conversations;
struct conversations *conversations_open(void);
void conversations_close(struct conversations **c);
/* Any thread. False = not known, or forgotten. */
bool conversations_find(struct conversations *c, uint64_t key, struct conversation *ret);
void conversations_note(struct conversations *c, const struct conversation *v);

uint64_t conversations_key_turns(const struct router_turn *turns, size_t count);
uint64_t conversations_key_name(const char *kind, const char *name);

#endif
