/* Store, tiers, node and experts opened in their order: what serve, bench and explain have in common.
 * Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_STACK_H
#define SWITCHYARD_DAEMON_STACK_H

#include "conf/conf.h"
#include "experts/experts.h"

struct stack {
    struct memtier_store *store;
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
    struct rdu_chip *chip;     /* rdu.chip, for node time */
    struct rdu_native *native; /* NULL unless rdu.exec is native */
    struct err native_said;    /* why it is not there although it should be */
    uint64_t hbm_bytes;     /* as resolved */
    bool measure;           /* the loader times block sizes at open: for whoever stays open */
    char *temporary;        /* a store that is removed at close, or NULL */
};

/* Opens from the configuration (store.path, tiers.*, rdu.*, kv.*, sched.*). tiers.hbm 0 becomes the smaller
 * of half of what the machine or cgroup allows and what all experts plus KV for 8 x 4,096 tokens need. */
enum err_code stack_open(const struct conf *c, enum memtier_access access, struct stack *ret, struct err *e)
    BASE_NODISCARD;
void stack_close(struct stack *s);

enum expert_kv_type stack_kv_type(const struct conf *c);

/* Tokens of KV that the automatic budget provides for, and the budget it comes to (whole MiB). */
#define STACK_KV_TOKENS (8 * 4096)
uint64_t stack_hbm_automatic(uint64_t store_bytes, uint64_t kv_bytes);

/* Import a GGUF file into the store of `c` as an expert if it is not there yet. *ret_name (caller frees)
 * is general.name made fit for an API, or the file's name if there is none or it is taken by other content. */
enum err_code stack_import(const struct conf *c, const char *gguf_path, const struct progress *p,
                           char **ret_name, struct err *e) BASE_NODISCARD;

/* For bench and explain: `model` is an expert's name in the store, or a GGUF file, which is imported into a
 * temporary store. */
enum err_code stack_open_model(struct conf *c, const char *model, const struct progress *p, struct stack *ret,
                               struct expert **ret_expert, struct err *e) BASE_NODISCARD;

#endif
