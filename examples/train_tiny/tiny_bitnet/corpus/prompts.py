"""The prompts in which a text and a question about it arrive, most of them those that RAG libraries send.

What is put in is always invented.
"""

from __future__ import annotations

NOT_TOLD = "I don't know."

QA_RULES = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything "
    "along those lines."
)
PLAIN_QA = (
    "{text}\n\n{question}",
    "{question}\n\n{text}",
    "{text} {question}",
    "Context: {text}\n\nQuestion: {question}",
    "Context:\n{text}\nQuestion: {question}\nAnswer:",
    "Read this text: {text}\n{question}",
    "Text: {text}\nQuestion: {question}",
)
INDEX_QA = (
    "Context information is below.\n---------------------\n{text}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: ",
    "Context information from multiple sources is below.\n---------------------\n{text}\n"
    "---------------------\nGiven the information from multiple sources and not prior knowledge, answer the "
    "query.\nQuery: {question}\nAnswer: ",
)
CHAIN_QA = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to "
    "answer the question. If you don't know the answer, just say that you don't know. Use three sentences "
    "maximum and keep the answer concise.\nQuestion: {question} \nContext: {text} \nAnswer:",
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, "
    "just say that you don't know, don't try to make up an answer.\n\n{text}\n\n"
    "Question: {question}\nHelpful Answer:",
    "Answer the question based only on the following context:\n{text}\n\nQuestion: {question}\n",
    "Answer the question using only this context.\n\nContext:\n{text}\n\nQuestion: {question}",
)
SYSTEM_QA = (
    "Use the given context to answer the question. If you don't know the answer, say you don't know. "
    "Context: {text}",
    "Answer the question based only on the following context:\n{text}",
    "You are a helpful assistant. Context:\n{text}",
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to "
    "answer the question. If you don't know the answer, say that you don't know. Use three sentences maximum "
    "and keep the answer concise.\n\n{text}",
    "Use the context information below to assist the user.\n--------------------\n{text}\n"
    "--------------------\n",
    "The following is a friendly conversation between a user and an AI assistant.\n  The assistant is "
    "talkative and provides lots of specific details from its context.\n  If the assistant does not know the "
    "answer to a question, it truthfully says it\n  does not know.\n\n  Here are the relevant documents for "
    "the context:\n\n  {text}\n\n  Instruction: Based on the above documents, provide a detailed answer for "
    'the user question below.\n  Answer "don\'t know" if not present in the document.\n  ',
)
REFINE = (
    "You are an expert Q&A system that strictly operates in two modes when refining existing answers:\n"
    "1. **Rewrite** an original answer using the new context.\n"
    "2. **Repeat** the original answer if the new context isn't useful.\n"
    "Never reference the original answer or context directly in your answer.\n"
    "When in doubt, just repeat the original answer.\n"
    "New Context: {text}\nQuery: {question}\nOriginal Answer: {answer}\nNew Answer: ",
    "The original query is as follows: {question}\nWe have provided an existing answer: {answer}\n"
    "We have the opportunity to refine the existing answer (only if needed) with some more context below.\n"
    "------------\n{text}\n------------\nGiven the new context, refine the original answer to better answer "
    "the query. If the context isn't useful, return the original answer.\nRefined Answer: ",
)
CONDENSE = (
    "Given a conversation (between Human and Assistant) and a follow up message from Human, rewrite the "
    "message to be a standalone question that captures all relevant context from the conversation.\n\n"
    "<Chat History>\n{history}\n\n<Follow Up Message>\n{question}\n\n<Standalone question>\n",
    "\n  Given the following conversation between a user and an AI assistant and a follow up question from "
    "user,\n  rephrase the follow up question to be a standalone question.\n\n  Chat History:\n  {history}\n"
    "  Follow Up Input: {question}\n  Standalone question:",
    "Given the following conversation and a follow up question, rephrase the follow up question to be a "
    "standalone question, in its original language.\n\nChat History:\n{history}\nFollow Up Input: "
    "{question}\n"
    "Standalone question:",
)
CONDENSE_SYSTEM = (
    "Given a chat history and the latest user question which might reference context in the chat history, "
    "formulate a standalone question which can be understood without the chat history. Do NOT answer the "
    "question, just reformulate it if needed and otherwise return it as is."
)
SUPPORTED = (
    "Please tell if a given piece of information is supported by the context.\n"
    "You need to answer with either YES or NO.\n"
    "Answer YES if any of the context supports the information, even if most of the context is unrelated. "
    "Some examples are provided below. \n\n{examples}"
    "Information: {answer}\nContext: {text}\nAnswer: ",
    "Context: {text}\n\nIs it true that {answer} Answer YES or NO.",
    "{text}\n\nIs this right? {answer}\nAnswer with YES or NO.",
)
IN_LINE = (
    "Your task is to evaluate if the response for the query     is in line with the context information "
    "provided.\nYou have two options to answer. Either YES/ NO.\nAnswer - YES, if the response for the query "
    "    is in line with context information otherwise NO.\nQuery and Response: \n Question: {question}\n"
    "Response: {answer}\nContext: \n {text}\nAnswer: ",
    "Question: {question}\nResponse: {answer}\nContext: {text}\n"
    "Is the response in line with the context? Answer YES or NO.",
)
SELECT_ONE = (
    "Some choices are given below. It is provided in a numbered list (1 to {count}), where each item in the "
    "list corresponds to a summary.\n---------------------\n{choices}\n---------------------\nUsing only the "
    "choices above and not prior knowledge, return the choice that is most relevant to the question: "
    "'{question}'\n"
)
SELECT_SOME = (
    "Some choices are given below. It is provided in a numbered list (1 to {count}), where each item in the "
    "list corresponds to a summary.\n---------------------\n{choices}\n---------------------\nUsing only the "
    "choices above and not prior knowledge, return the top choices (no more than {most}, but only select "
    "what is needed) that are most relevant to the question: '{question}'\n"
)
FOLLOW_SCHEMA = (
    "\n\nHere's a JSON schema to follow:\n{schema}\n\n"
    "Output a valid JSON object but do not repeat the schema.\n"
)
