/* A tiny BERT of random weights in both file formats, and what it must answer, computed in double.
 */
#ifndef SWITCHYARD_TESTS_UNIT_EXPERTS_BERT_H
#define SWITCHYARD_TESTS_UNIT_EXPERTS_BERT_H

#include "tests/unit/experts/unit.h"

enum { BERT_LAYERS = 2, BERT_WIDTH = 64, BERT_HEADS = 4, BERT_FFN = 96, BERT_CONTEXT = 80 };
extern const char *const bert_pieces[]; /* as in vocab.txt */
extern const size_t bert_vocab;

struct bert {
    struct arena memory;
    struct bert_tensor {
        const char *hf, *gguf;
        uint32_t rows, cols; /* rows 0: a vector */
        float *data;
    } tensors[64];
    size_t count;
};
void bert_open(struct bert *b, uint64_t seed);
void bert_close(struct bert *b);
const struct bert_tensor *bert_find(const struct bert *b, const char *gguf);

/* config.json, vocab.txt and model.safetensors into a folder; one GGUF file. */
void bert_write_folder(const struct bert *b, const char *dir);
void bert_write_gguf(const struct bert *b, const char *path);
void bert_safetensors(const struct bert *b, struct buf *out);
/* The vector [BERT_WIDTH] of token ids, [CLS] and [SEP] not included. */
void bert_answer(const struct bert *b, const int32_t *ids, size_t count, bool first_token,
                 double *ret);

#endif
