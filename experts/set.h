/* Weight sets: how one GGUF file lies in the store. A set is the object "set/<hash of its
 * content>"; its description is a table of tensors followed by the verbatim GGUF header, from which
 * tokenizer, template and hyperparameters are read again, so the store needs no second format for
 * them.
 *
 * Segments of a model, in load order: token embedding in runs of rows, one segment for each layer,
 * the small tensors outside the layers, then the head in runs of rows if it is not the embedding.
 * An adapter is one segment. Inside a segment tensors start at multiples of SET_ALIGN; matrices are
 * packed (rdu_pack_rows), vectors are plain f32. Private to experts/ and its tests. */
#ifndef SWITCHYARD_EXPERTS_SET_H
#define SWITCHYARD_EXPERTS_SET_H

#include "experts/experts.h"
#include "experts/model.h"

#define SET_ALIGN 64
#define SET_RUN_BYTES ((size_t)4 << 20) /* a run of embedding or head rows is at most this long */
#define SET_ADAPTERS_MAX 4              /* of one expert: an adapter may sit on an adapter */
#define SET_PREFIX "set/"
#define EXPERT_PREFIX "expert/"

struct set_tensor {
    const char *name;        /* as in the file: "blk.3.attn_q.weight" */
    const char *slot;        /* "attn_q.weight"; the name itself outside the layers */
    int32_t layer;           /* -1 = outside the layers */
    enum rdu_type type;      /* as stored: a vector is always RDU_F32 */
    enum rdu_type file_type; /* as in the file */
    bool is_vector;
    uint32_t rows, cols; /* a vector is [1, cols] */
    uint32_t segment;    /* index into the object's segments (of its first run if in runs) */
    uint64_t offset;     /* in that segment; 0 for every run */
    uint64_t bytes;      /* stored, over all runs */
    uint32_t runs;       /* consecutive segments it spans, >= 1 */
    uint32_t run_rows;   /* embedding and head: rows of every run but the last, a multiple of
                          * RDU_GROUP; 0 = the tensor lies inside one shared segment */
};

/* Owns everything it points to. Immutable after set_parse; any thread. */
struct set_meta {
    struct gguf *gguf; /* parsed from the kept header; has no file behind it */
    bool is_adapter;
    struct model_shape shape;   /* models only; rope_factors filled in */
    double adapter_alpha;       /* adapters only; 0 = scale is 1 whatever the rank */
    struct set_tensor *tensors; /* models: load order; adapters: pairs, lora_a then lora_b */
    size_t tensors_count;
    uint32_t segments;               /* how many the object has */
    uint64_t *segment_bytes;         /* [segments] */
    enum memtier_kind *segment_kind; /* [segments] */
    uint32_t embed_segment, embed_runs;
    uint32_t layer_segment; /* layer i is segment layer_segment + i */
    uint32_t norm_segment;
    uint32_t head_segment, head_runs; /* equal to embed_* if the head is tied */
    void *index;                      /* private: names to tensors */
};

/* Read a set object's description and check it against the object's segments: offsets, sizes,
 * order. ERR_CORRUPT names the object and what does not fit. */
enum err_code set_parse(const struct memtier_object *o, struct set_meta **ret,
                        struct err *e) BASE_NODISCARD;
void set_close(struct set_meta **s);
const struct set_tensor *set_find(const struct set_meta *s, const char *name); /* NULL = absent */
const struct set_tensor *set_find_slot(const struct set_meta *s, int32_t layer, const char *slot);
/* Adapters: the pair for a slot; false = the adapter leaves it alone. Rank = (*ret_a)->rows; the
 * factor of the pair, alpha / rank, without the expert's own scale, goes to *ret_scale. */
bool set_find_delta(const struct set_meta *s, int32_t layer, const char *slot,
                    const struct set_tensor **ret_a, const struct set_tensor **ret_b,
                    float *ret_scale);

/* Lay out a GGUF file as a set: what will go where, before anything is written. Takes the file over
 * on success only. `base` = NULL for a model; for an adapter the shape of the model it sits on,
 * against which every pair is checked. ERR_CORRUPT, ERR_UNSUPPORTED, ERR_INVALID name the tensor or
 * key. */
enum err_code set_plan_model(struct gguf **g, const struct model_shape *shape,
                             struct set_meta **ret, struct err *e) BASE_NODISCARD;
enum err_code set_plan_adapter(struct gguf **g, const struct model_shape *base,
                               struct set_meta **ret, struct err *e) BASE_NODISCARD;
/* The description to store with the object. */
enum err_code set_format(const struct set_meta *s, struct buf *ret, struct err *e) BASE_NODISCARD;
/* Build the name index once `tensors` is filled. */
void set_index(struct set_meta *s);
/* Bytes of all segments. */
uint64_t set_bytes(const struct set_meta *s);

/* Write the planned segments into the store as object `object`; reads the file behind s->gguf. */
enum err_code set_write(struct memtier_store *store, const struct set_meta *s, const char *object,
                        const struct progress *progress, struct expert_add_report *ret,
                        struct err *e) BASE_NODISCARD;
/* Bytes of tensors back out of the store. `rows` rows from `row_from` (a multiple of RDU_GROUP) as
 * in the GGUF file, types of the file included, to dst. The reader keeps the last segment it read.
 */
struct set_reader {
    struct memtier_store *store;
    const struct memtier_object *object;
    struct set_meta *set;
    uint8_t *segment;
    uint32_t segment_idx; /* UINT32_MAX = none */
};
enum err_code set_reader_init(struct set_reader *r, struct memtier_store *store, const char *object,
                              struct err *e) BASE_NODISCARD;
void set_reader_done(struct set_reader *r);
enum err_code set_read_rows(struct set_reader *r, const struct set_tensor *t, uint32_t row_from,
                            uint32_t rows, void *dst, struct err *e) BASE_NODISCARD;

/* What the store says about an expert: the JSON of object "expert/<name>". Strings owned; NULL =
 * none. */
struct expert_record {
    char *name;
    char *set;         /* "set/..." of the full weights at the bottom */
    char *base;        /* adapters: the expert right below, which may be an adapter itself */
    char *adapter_set; /* adapters: "set/..." of the adapter */
    double scale;      /* adapters: the expert's own factor */
    char *description, *system, *template_source, *licence;
    char **aliases;
    size_t aliases_count;
    uint64_t created_s;
};
enum err_code expert_record_parse(const struct memtier_object *o, struct expert_record **ret,
                                  struct err *e) BASE_NODISCARD;
void expert_record_close(struct expert_record **r);
enum err_code expert_record_format(const struct expert_record *r, struct buf *ret,
                                   struct err *e) BASE_NODISCARD;
/* Everything but the time of creation. */
bool expert_record_equal(const struct expert_record *a, const struct expert_record *b);
/* By name or alias; ERR_NOT_FOUND lists what there is. */
enum err_code expert_record_find(struct memtier_store *store, const char *name,
                                 struct expert_record **ret, struct err *e) BASE_NODISCARD;
/* What lists show. `set` is the base's or the model's, `adapter` NULL for a full model; both may be
 * NULL when they could not be read. Fill a zeroed struct; expert_info_done frees its strings. */
void expert_info_fill(struct expert_info *info, const struct expert_record *r,
                      const struct set_meta *set, const struct set_meta *adapter);
void expert_info_done(struct expert_info *info);

#endif
