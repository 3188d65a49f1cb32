// Carries IndexedDB databases from one node process to the next.
//
// matrix-js-sdk keeps its end-to-end encryption keys in IndexedDB, which node does not have. The
// package fake-indexeddb provides it in memory; this file writes every database to disk at the end of
// a process and lays it anew at the start of the next one, through the IndexedDB interface alone.

import { readFile, rename, writeFile } from "node:fs/promises";
import { deserialize, serialize } from "node:v8";

/** Writes all databases to `path`; a crash in between leaves the older file whole. */
export async function save(path) {
    const databases = [];
    for (const { name } of await indexedDB.databases()) {
        const database = await settled(indexedDB.open(name));
        databases.push(await readDatabase(database));
        database.close();
    }
    await writeFile(`${path}.new`, serialize(databases));
    await rename(`${path}.new`, path);
}

/** Lays the databases of an earlier `save` anew. */
export async function load(path) {
    for (const saved of deserialize(await readFile(path))) {
        const request = indexedDB.open(saved.name, saved.version);
        request.onupgradeneeded = () => saved.stores.forEach((store) => createStore(request.result, store));
        const database = await settled(request);
        await fillDatabase(database, saved.stores);
        database.close();
    }
}

async function readDatabase(database) {
    const names = [...database.objectStoreNames];
    const stores = [];
    if (names.length > 0) {
        const transaction = database.transaction(names, "readonly");
        for (const name of names) stores.push(await readStore(transaction.objectStore(name)));
    }
    return { name: database.name, version: database.version, stores };
}

async function readStore(store) {
    const indexes = [...store.indexNames].map((name) => {
        const { keyPath, unique, multiEntry } = store.index(name);
        return { name, keyPath, unique, multiEntry };
    });
    const [keys, values] = await Promise.all([settled(store.getAllKeys()), settled(store.getAll())]);
    const { name, keyPath, autoIncrement } = store;
    return { name, keyPath, autoIncrement, indexes, keys, values };
}

function createStore(database, { name, keyPath, autoIncrement, indexes }) {
    const store = database.createObjectStore(name, { keyPath, autoIncrement });
    for (const { name, keyPath, ...options } of indexes) store.createIndex(name, keyPath, options);
}

async function fillDatabase(database, stores) {
    if (stores.length === 0) return;
    const names = stores.map(({ name }) => name);
    const transaction = database.transaction(names, "readwrite");
    for (const { name, keyPath, keys, values } of stores) {
        const store = transaction.objectStore(name);
        // A store with a key path takes the key out of the value and refuses to be given one.
        values.forEach((value, at) => (keyPath === null ? store.put(value, keys[at]) : store.put(value)));
    }
    await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = () => reject(transaction.error);
    });
}

function settled(request) {
    return new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
}
