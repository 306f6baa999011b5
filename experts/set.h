/* Weight sets: how one GGUF file lies in the store. A set is the object "set/<hash of its content>";
 * its description is a table of tensors followed by the verbatim GGUF header, from which tokenizer,
 * template and hyperparameters are read again, so the store needs no second format for them.
 *
 * Segments of a model, in load order: token embedding in runs of rows, one segment for each layer, the
 * small tensors outside the layers, then the head in runs of rows if it is not the embedding. An adapter
 * is one segment. Inside a segment tensors start at multiples of SET_ALIGN; matrices are packed
 * (rdu_pack_rows), vectors are plain f32. Private to experts/ and its tests. */
#ifndef SWITCHYARD_EXPERTS_SET_H
#define SWITCHYARD_EXPERTS_SET_H

#include "experts/experts.h"
#include "experts/model.h"

#define SET_ALIGN 64
#define SET_RUN_BYTES ((size_t)4 << 20) /* a run of embedding or head rows is at most this long */
#define SET_PREFIX "set/"
#define EXPERT_PREFIX "expert/"

struct set_tensor {
    const char *name;        /* as in the file: "blk.3.attn_q.weight" */
    const char *slot;        /* "attn_q.weight"; the name itself outside the layers */
    int32_t layer;           /* -1 = outside the layers */
    enum rdu_type type;      /* as stored: a vector is always RDU_F32 */
    enum rdu_type file_type; /* as in the file */
    bool is_vector;
    uint32_t rows, cols;     /* a vector is [1, cols] */
    uint32_t segment;        /* index into the object's segments (of its first run if in runs) */
    uint64_t offset;         /* in that segment; 0 for every run */
    uint64_t bytes;          /* stored, over all runs */
    uint32_t runs;           /* segments it spans; 1 = whole */
    uint32_t run_rows;       /* rows of every run but the last, multiple of RDU_GROUP; 0 if whole */
};

/* Owns everything it points to. Immutable after set_parse; any thread. */
struct set_meta {
    struct gguf *gguf;           /* parsed from the kept header; has no file behind it */
    bool is_adapter;
    struct model_shape shape;    /* models only; rope_factors filled in */
    double adapter_alpha;        /* adapters only; 0 = scale is 1 whatever the rank */
    struct set_tensor *tensors;  /* models: load order; adapters: pairs, lora_a then lora_b */
    size_t tensors_count;
    uint32_t segments;           /* how many the object must have */
    uint32_t embed_segment, embed_runs;
    uint32_t layer_segment;      /* layer i is segment layer_segment + i */
    uint32_t norm_segment;
    uint32_t head_segment, head_runs; /* equal to embed_* if the head is tied */
    void *index;                 /* private: names to tensors */
};

/* Read a set object's description and check it against the object's segments: offsets, sizes, order.
 * ERR_CORRUPT names the object and what does not fit. */
enum err_code set_parse(const struct memtier_object *o, struct set_meta **ret, struct err *e)
    BASE_NODISCARD;
void set_close(struct set_meta **s);
const struct set_tensor *set_find(const struct set_meta *s, const char *name);          /* NULL = absent */
const struct set_tensor *set_find_slot(const struct set_meta *s, int32_t layer, const char *slot);
/* Adapters: the pair for a slot; false = the adapter leaves it alone. Rank = (*ret_a)->rows; the factor
 * of the pair, alpha / rank, without the expert's own scale, goes to *ret_scale. */
bool set_find_delta(const struct set_meta *s, int32_t layer, const char *slot,
                    const struct set_tensor **ret_a, const struct set_tensor **ret_b,
                    float *ret_scale);

/* What the store says about an expert: the JSON of object "expert/<name>". Strings owned; NULL = none. */
struct expert_record {
    char *name;
    char *set;          /* "set/..." of the full weights: of the base for an adapter */
    char *base;         /* adapters: the base expert's name */
    char *adapter_set;  /* adapters: "set/..." of the adapter */
    double scale;       /* adapters: the expert's own factor */
    char *description, *system, *template_source, *licence;
    char **aliases;
    size_t aliases_count;
    uint64_t created_s;
};
enum err_code expert_record_parse(const struct memtier_object *o, struct expert_record **ret,
                                  struct err *e) BASE_NODISCARD;
void expert_record_close(struct expert_record **r);

#endif
